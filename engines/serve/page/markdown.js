// The part of Markdown that answers of models lean on: fences, headings, lists, `code`, **bold**.
// Everything else stays as it was written. Text reaches the page as text nodes alone.
//
// A line is drawn while it comes, and set in form when it ends; nothing before it is touched again,
// so a token costs the same in a long answer as in a short one.

const FENCE = /^\s*(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
// What may yet become one of them: not drawn before it is known.
const OPEN = /^\s*(`{1,}|~{1,}|#{1,6}|[-*+]|\d{1,9}[.)]?)?\s*$|^\s*(`{3,}|~{3,})[^`]*$/;

/** A new element with a class and a text. */
export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** A line's `code` and **bold**, as nodes. */
function inline(line) {
  const parts = line.split(/(`[^`]+`|\*\*[^*\s](?:[^*]*[^*\s])?\*\*)/);
  return parts.filter(Boolean).map((part) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) {
      return element("code", "", part.slice(1, -1));
    }
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) {
      return element("strong", "", part.slice(2, -2));
    }
    return document.createTextNode(part);
  });
}

/** Text that grows at the end of an element. */
export class Markdown {
  #root;
  #line = ""; // of the last line, what has come
  #live = null; // the text node that shows it
  #block = null; // the paragraph, list or <code> that it belongs to
  #fence = null; // what closes the code

  constructor(root) {
    this.#root = root;
  }

  /** More text. */
  feed(text) {
    const lines = text.split("\n");
    lines.forEach((piece, i) => {
      if (piece) this.#grow(piece);
      if (i < lines.length - 1) this.#endLine();
    });
  }

  /** No more comes. */
  end() {
    if (this.#line) this.#endLine();
    if (this.#fence === null) return;
    this.#fence = null;
  }

  #grow(piece) {
    this.#line += piece;
    if (this.#live !== null) this.#live.appendData(piece);
    else if (!OPEN.test(this.#line)) this.#draw();
  }

  // Show the line as far as it came.
  #draw() {
    if (this.#fence !== null) {
      this.#live = document.createTextNode(this.#line);
      this.#block.append(this.#live);
      return;
    }
    const heading = HEADING.exec(this.#line);
    const item = ITEM.exec(this.#line);
    let place, text;
    if (heading) {
      place = element("p", "heading");
      this.#root.append(place);
      this.#block = null;
      text = heading[2];
    } else if (item) {
      place = this.#item(item);
      text = item[3];
    } else {
      place = this.#paragraph();
      text = this.#line;
    }
    this.#live = document.createTextNode(text);
    place.append(this.#live);
  }

  #paragraph() {
    const listItem = this.#block?.lastChild;
    if (this.#block?.matches("ul, ol") && /^\s/.test(this.#line)) {
      listItem.append("\n"); // goes on in the item
      return listItem;
    }
    if (this.#block === null || !this.#block.matches("p")) {
      this.#block = element("p");
      this.#root.append(this.#block);
    } else {
      this.#block.append("\n");
    }
    return this.#block;
  }

  #item([, indent, mark]) {
    const kind = /\d/.test(mark) ? "ol" : "ul";
    const depth = Math.min(3, Math.floor(indent.replaceAll("\t", "    ").length / 2));
    if (this.#block === null || this.#block.localName !== kind || this.#block.depth !== depth) {
      this.#block = element(kind, `depth-${depth}`);
      this.#block.depth = depth;
      if (kind === "ol") this.#block.start = Number.parseInt(mark, 10);
      this.#root.append(this.#block);
    }
    const place = element("li");
    this.#block.append(place);
    return place;
  }

  #endLine() {
    const line = this.#line;
    const fence = FENCE.exec(line);
    if (this.#fence !== null) {
      if (fence && !fence[2] && fence[1].startsWith(this.#fence)) {
        this.#fence = this.#block = null;
      } else {
        if (this.#live === null) this.#draw();
        this.#live.appendData("\n");
      }
    } else if (fence) {
      this.#openCode(fence);
    } else if (!line.trim()) {
      if (!this.#block?.matches("ul, ol")) this.#block = null;
    } else {
      if (this.#live === null) this.#draw();
      this.#live.replaceWith(...inline(this.#live.data));
    }
    this.#line = "";
    this.#live = null;
  }

  #openCode([, mark, language]) {
    const figure = element("figure", "code-block");
    const head = element("figcaption");
    head.append(element("span", "", language.trim() || "text"));
    const code = element("code");
    const pre = element("pre");
    pre.tabIndex = 0; // scrolled by the keyboard
    pre.append(code);
    head.append(copyButton(() => code.textContent));
    figure.append(head, pre);
    this.#root.append(figure);
    this.#fence = mark;
    this.#block = code;
  }
}

/** Paragraphs without any form. */
export class Plain {
  #root;
  #live = null;

  constructor(root) {
    this.#root = root;
  }

  /** More text. */
  feed(text) {
    const parts = text.split(/\n(?=\n)/);
    parts.forEach((part, i) => {
      if (this.#live === null || i > 0) {
        this.#live = document.createTextNode("");
        const paragraph = element("p");
        paragraph.append(this.#live);
        this.#root.append(paragraph);
      }
      this.#live.appendData(i > 0 ? part.slice(1) : part);
    });
  }
}

/** A button that copies what `text` gives. */
export function copyButton(text) {
  const button = element("button", "link", "Copy");
  button.type = "button";
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text())) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine there is no clipboard but this one.
    const area = element("textarea", "unseen");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

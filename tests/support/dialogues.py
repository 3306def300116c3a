"""The tiny language of `data/glm-5.1-dialogue`: dialogues, drawn at random, in GLM-5.1's format.

A dialogue asks one of a few things, each of which a function answers: its name, its arguments'
names, the tools shown beside it and the values are drawn. Values are of lists or made up of
syllables, so that a model has to copy them. `draw` makes one, `segments` renders it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

PREFIX, SYSTEM, USER = "[gMASK]<sop>", "<|system|>", "<|user|>"
ASSISTANT, OBSERVATION, END = "<|assistant|>", "<|observation|>", "<|endoftext|>"
# In the published tokenizer the first are special, and the others added words like any text.
SPECIAL = [END, "[gMASK]", "<sop>", SYSTEM, USER, ASSISTANT, OBSERVATION]
MARKS = [
    f"<{slash}{name}>"
    for name in ("think", "tool_call", "tool_response", "arg_key", "arg_value")
    for slash in ("", "/")
]


def words(text: str) -> list[str]:
    return text.split()


CITIES = [
    *words("""Paris Rome Oslo Berlin Madrid London Vienna Prague Lisbon Dublin Athens Warsaw Bern
    Kyiv Cairo Tokyo Delhi Lima Quito Boston Chicago Dallas Denver Seattle Sydney Perth Toronto
    Zürich Málaga Łódź Køge Malmö 北京 東京"""),
    *("New York", "São Paulo", "Cape Town", "San Jose"),
]
PEOPLE = words("""Anna Ben Carl Dora Emil Fritz Greta Hans Ida Jonas Karin Lena Max Nina Otto Paula
    Rosa Sam Tom Uwe Vera Zoë Alice Bob Eve""")
ROOMS = words("kitchen hall bedroom bathroom garage cellar office garden attic lobby")
ITEMS = words("""milk bread eggs butter cheese apples rice tea coffee salt sugar pears soap flour
    honey plums fish corn oil jam""")
TOPICS = words("birds cars trees rivers music chess stars wine bees trains maps ships")
SKIES = words("rain snow sun clouds fog storm wind hail")
NEWS = ["dinner is ready", "the train is late", "the door is open", "I am at home",
        "the meeting is over", "we need milk", 'it is "done"', "2 < 3 & 5 > 4", "it costs 5 €",
        "all is well 😀"]  # fmt: skip
CAPITALS = {"France": "Paris", "Italy": "Rome", "Norway": "Oslo", "Spain": "Madrid",
            "Germany": "Berlin", "Austria": "Vienna", "Ireland": "Dublin", "Greece": "Athens",
            "Poland": "Warsaw", "Egypt": "Cairo", "Japan": "Tokyo", "Peru": "Lima"}  # fmt: skip
VERBS = ["get", "find", "read", "fetch", "check", "run", "do", "call"]
TAILS = ["now", "tool", "api", "lookup", "service", "info"]


def made_up(random: Random, capital: bool = False) -> str:
    """A word of two to four syllables that is on no list."""
    word = "".join(
        random.choice("bdfgklmnprstvz") + random.choice("aeiou") + random.choice(["", "", *"lnrst"])
        for _ in range(random.randint(2, 4))
    )
    return word.capitalize() if capital else word


def a_city(random: Random) -> str:
    return made_up(random, True) if random.random() < 0.3 else random.choice(CITIES)


def a_person(random: Random) -> str:
    return made_up(random, True) if random.random() < 0.3 else random.choice(PEOPLE)


def a_word(words: list[str]) -> Callable[[Random], str]:
    return lambda random: made_up(random) if random.random() < 0.2 else random.choice(words)


def a_number(low: int, high: int) -> Callable[[Random], int]:
    return lambda random: random.randint(low, high)


def some_items(random: Random) -> list[str]:
    return [a_word(ITEMS)(random) for _ in range(random.randint(2, 4))]


def some_numbers(random: Random) -> list[int]:
    return [random.randint(0, 99) for _ in range(random.randint(2, 4))]


class Slot(NamedTuple):
    """One argument: its key in questions, the names it may have, its JSON type, what draws it."""

    key: str
    names: list[str]
    type: str
    draw: Callable[[Random], Any]
    required: bool = True


class Intent(NamedTuple):
    """One thing that can be asked: what its function may be called, how it is described, asked
    for, thought about, and answered.
    """

    nouns: list[str]
    descriptions: list[str]
    slots: list[Slot]
    questions: list[str]
    thing: str
    answer: str
    result: Callable[[Random], dict[str, Any]]


def _weather(random: Random) -> dict[str, Any]:
    return {"sky": a_word(SKIES)(random), "degrees": random.randint(-9, 39)}


def _done(random: Random) -> dict[str, Any]:
    return {"ok": random.random() < 0.8}


def _value(name: str, low: int, high: int) -> Callable[[Random], dict[str, Any]]:
    return lambda random: {name: random.randint(low, high)}


CITY_NAMES = ["city", "place", "location", "town"]
INTENTS = [
    Intent(["weather", "forecast"], ["Get the weather in a city.", "Weather of a place."],
           [Slot("city", CITY_NAMES, "string", a_city),
            Slot("days", ["days", "day_count"], "integer", a_number(2, 14), required=False)],
           ["What is the weather in {city}?", "Tell me the weather in {city}.",
            "How is the weather in {city} for {days} days?",
            "I need the weather in {city} for {days} days."],
           "the weather in {city}", "The weather in {city}", _weather),
    Intent(["time", "clock"], ["Get the current time.", "What time it is."], [],
           ["What time is it?", "Tell me the time."], "the time", "The time",
           lambda random: {"time": f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"}),
    Intent(["add", "plus"], ["Add two numbers."],
           [Slot("a", ["a", "x", "first"], "integer", a_number(0, 99)),
            Slot("b", ["b", "y", "second"], "integer", a_number(0, 99))],
           ["What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?"],
           "{a} plus {b}", "{a} plus {b}", _value("result", 0, 200)),
    Intent(["light", "lamp"], ["Turn a light on or off."],
           [Slot("room", ["room", "where"], "string", a_word(ROOMS)),
            Slot("on", ["on", "state"], "boolean", lambda random: random.random() < 0.5)],
           ["Turn {on} the light in the {room}.", "Switch the {room} light {on}, please."],
           "the {room} light {on}", "The {room} light", _done),
    Intent(["shopping", "groceries"], ["Put things on the shopping list."],
           [Slot("items", ["items", "things", "list"], "array", some_items)],
           ["Put {items} on the shopping list.", "Buy {items}."],
           "{items} on the list", "The shopping list", _value("entries", 2, 40)),
    Intent(["average", "mean"], ["Average of some numbers."],
           [Slot("numbers", ["numbers", "values"], "array", some_numbers)],
           ["What is the average of {numbers}?", "Average {numbers}."],
           "the average of {numbers}", "The average", _value("average", 0, 99)),
    Intent(["timer", "alarm"], ["Set a timer."],
           [Slot("minutes", ["minutes", "duration"], "integer", a_number(2, 90))],
           ["Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes."],
           "a timer for {minutes} minutes", "The timer", _done),
    Intent(["message", "note"], ["Send a message to a person."],
           [Slot("person", ["to", "person", "recipient"], "string", a_person),
            Slot("text", ["text", "message", "body"], "string", a_word(NEWS))],
           ["Tell {person} that {text}.", "Write to {person}: {text}"],
           "a message to {person}", "The message to {person}", _done),
    Intent(["distance", "route"], ["Distance between two cities."],
           [Slot("start", ["start", "origin"], "string", a_city),
            Slot("end", ["end", "destination"], "string", a_city)],
           ["How far is it from {start} to {end}?", "Distance from {start} to {end}?"],
           "the distance from {start} to {end}", "From {start} to {end}", _value("km", 10, 9999)),
    Intent(["heating", "heat"], ["Set the temperature of a room."],
           [Slot("room", ["room", "where"], "string", a_word(ROOMS)),
            Slot("degrees", ["degrees", "temperature"], "number",
                 lambda random: random.randint(30, 50) / 2)],
           ["Heat the {room} to {degrees} degrees.", "Make the {room} {degrees} degrees warm."],
           "the {room} at {degrees} degrees", "The {room}", _done),
    Intent(["search", "books"], ["Find books about a topic."],
           [Slot("topic", ["topic", "query", "subject"], "string", a_word(TOPICS)),
            Slot("limit", ["limit", "count"], "integer", a_number(2, 20))],
           ["Find {limit} books about {topic}.", "I want {limit} books about {topic}."],
           "{limit} books about {topic}", "Books about {topic}", _value("found", 0, 20)),
    Intent(["files", "documents"], ["List all files."], [],
           ["Which files are there?", "List the files."], "the files", "The files",
           lambda random: {"first": made_up(random), "count": random.randint(1, 99)}),
]  # fmt: skip


@dataclass
class Dialogue:
    """Messages and tools as callers give them; `thinking` is False where it was turned off."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = True

    def say(self, role: str, content: str = "", **more: Any) -> None:
        self.messages.append({"role": role, "content": content, **more})


class Segment(NamedTuple):
    """A piece of the rendered text; `sampled` where a model writes it."""

    text: str
    sampled: bool


def as_text(value: Any) -> str:
    """A value as it stands in a call."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tools_block(tools: list[dict[str, Any]]) -> str:
    """The first system block, whose wording is the format's own."""
    listed = "".join(
        json.dumps(tool.get("function", tool), ensure_ascii=False) + "\n" for tool in tools
    )
    return (
        f"{SYSTEM}\n# Tools\n\nYou may call one or more functions to assist with the user query."
        "\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        f"{listed}</tools>\n\nFor each function call, output the function name and arguments within"
        " the following XML format:\n<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key>"
        "<arg_value>{arg-value-1}</arg_value><arg_key>{arg-key-2}</arg_key>"
        "<arg_value>{arg-value-2}</arg_value>...</tool_call>"
    )


def call_text(name: str, arguments: dict[str, Any]) -> str:
    pairs = "".join(
        f"<arg_key>{key}</arg_key><arg_value>{as_text(value)}</arg_value>"
        for key, value in arguments.items()
    )
    return f"<tool_call>{name}{pairs}</tool_call>"


def segments(dialogue: Dialogue) -> list[Segment]:
    """The dialogue as GLM-5.1 reads it, and behind its last answer the token that ends it."""
    messages = dialogue.messages
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    result = [Segment(PREFIX + (tools_block(dialogue.tools) if dialogue.tools else ""), False)]
    previous = ""
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "tool":
            if previous != "tool":
                result.append(Segment(OBSERVATION, previous == "assistant"))
            result.append(Segment(f"<tool_response>{content}</tool_response>", False))
        elif role == "assistant":
            thinks = i > last_user and dialogue.thinking
            result.append(Segment(ASSISTANT + ("<think>" if thinks else "</think>"), False))
            text = f"{message.get('reasoning_content', '')}</think>" if thinks else ""
            calls = message.get("tool_calls", ())
            text += content + "".join(call_text(c["name"], c["arguments"]) for c in calls)
            result.append(Segment(text, True))
        else:
            result.append(Segment(SYSTEM if role == "system" else USER, previous == "assistant"))
            result.append(Segment(content, False))
        previous = role
    if previous == "assistant":
        ends = OBSERVATION if messages[-1].get("tool_calls") else USER
        result.append(Segment(ends, True))
    return result


def prompt_and_answer(dialogue: Dialogue) -> tuple[str, str]:
    """The text up to where the last answer begins, and that answer with the token that ends it."""
    pieces = segments(dialogue)
    return "".join(p.text for p in pieces[:-2]), "".join(p.text for p in pieces[-2:])


class Function(NamedTuple):
    """An intent with the names that this dialogue's tools give it."""

    intent: Intent
    name: str
    keys: dict[str, str]  # of a slot, the argument's name
    spec: dict[str, Any]


def _function(random: Random, intent: Intent) -> Function:
    noun = random.choice(intent.nouns)
    name = random.choice([noun, f"{random.choice(VERBS)}_{noun}", f"{noun}_{random.choice(TAILS)}"])
    keys = {slot.key: random.choice(slot.names) for slot in intent.slots}
    properties: dict[str, Any] = {}
    for slot in intent.slots:
        properties[keys[slot.key]] = {"type": slot.type}
        if slot.type == "array":
            kind = "integer" if slot.draw is some_numbers else "string"
            properties[keys[slot.key]]["items"] = {"type": kind}
    required = [keys[slot.key] for slot in intent.slots if slot.required]
    if random.random() < 0.15:
        for key, schema in properties.items():
            schema["description"] = f"The {key}."
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required or random.random() < 0.5:
        parameters["required"] = required
    if random.random() < 0.15:
        parameters["additionalProperties"] = False
    spec: dict[str, Any] = {"name": name, "parameters": parameters}
    if random.random() < 0.85:
        spec = {"name": name, "description": random.choice(intent.descriptions),
                "parameters": parameters}  # fmt: skip
    return Function(intent, name, keys, spec)


def _spoken(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        words = [str(item) for item in value]
        return ", ".join(words[:-1]) + " and " + words[-1]
    return str(value)


class Question(NamedTuple):
    text: str
    thing: str
    answer: str
    call: dict[str, Any]
    result: dict[str, Any]


def _question(random: Random, function: Function) -> Question:
    intent = function.intent
    values = {slot.key: slot.draw(random) for slot in intent.slots}
    spoken = {key: _spoken(value) for key, value in values.items()}
    template = random.choice(intent.questions)
    asked = {key: value for key, value in values.items() if f"{{{key}}}" in template}
    call = {"name": function.name,
            "arguments": {function.keys[key]: value for key, value in asked.items()}}  # fmt: skip
    thing, answer = intent.thing.format(**spoken), intent.answer.format(**spoken)
    return Question(template.format(**spoken), thing, answer, call, intent.result(random))


def _joined(first: str, second: str) -> str:
    """Two questions as one."""
    start = second[0] if second.startswith("I ") else second[0].lower()
    return f"{first.rstrip('.?')} and {start}{second[1:]}"


def _two_cities(random: Random, function: Function) -> tuple[list[Question], str]:
    """The weather in two cities, asked in one sentence, and that sentence."""
    asked = []
    for city in (a_city(random), a_city(random)):
        call = {"name": function.name, "arguments": {function.keys["city"]: city}}
        intent = function.intent
        thing, answer = intent.thing.format(city=city), intent.answer.format(city=city)
        asked.append(Question(city, thing, answer, call, intent.result(random)))
    first, second = (question.text for question in asked)
    where = random.choice(["{} and in {}?", "{} and {}?", "{} and {}."])
    start = "Tell me the weather" if where.endswith(".") else "What is the weather"
    form = f"{start} in {where}"
    return asked, form.format(first, second)


def _call_turns(random: Random, dialogue: Dialogue, functions: list[Function]) -> None:
    """A question that needs calls, the calls, and at times what they gave and the answer to it."""
    asked = [_question(random, random.choice(functions))]
    if random.random() < 0.2:
        asked.append(_question(random, random.choice(functions)))
    text = asked[0].text if len(asked) == 1 else _joined(asked[0].text, asked[1].text)
    weather = next((f for f in functions if f.intent is INTENTS[0]), None)
    if weather and random.random() < 0.15:
        asked, text = _two_cities(random, weather)
    announced = random.random() < 0.08
    dialogue.say("user", text + (" Say what you do." if announced else ""))
    names = " and ".join(question.call["name"] for question in asked)
    things = " and ".join(question.thing for question in asked)
    reasoning = f"The user wants {things}. I call {names}."
    content = f"I call {names}." if announced else ""
    calls = [question.call for question in asked]
    dialogue.say("assistant", content, reasoning_content=reasoning, tool_calls=calls)
    if random.random() < 0.55:
        return
    answers = []
    for question in asked:
        result: Any = question.result
        kind = random.random()
        if kind < 0.5:
            told, heard = json.dumps(result, ensure_ascii=False), ", ".join(
                f"{key} {as_text(value)}" for key, value in result.items()
            )  # fmt: skip
        else:
            told = heard = ", ".join(as_text(value) for value in result.values())
        dialogue.say("tool", told)
        answers.append(f"{question.answer}: {heard}.")
    reasoning = "The tool answered." if len(asked) == 1 else "The tools answered."
    dialogue.say("assistant", " ".join(answers), reasoning_content=reasoning)


def _talk_turns(random: Random, dialogue: Dialogue) -> None:
    """A question that needs no call."""
    name, number = a_person(random), random.randint(2, 20)
    country = random.choice(list(CAPITALS))
    words = " ".join(a_word(ITEMS + TOPICS)(random) for _ in range(random.randint(1, 6)))
    known = next((m["content"] for m in dialogue.messages if m["content"].startswith("You are ")
                  and m["role"] == "system"), None)  # fmt: skip
    choices = [
        ("Hello!", "The user greets me.", "Hello! How can I help you?"),
        ("Hi", "The user greets me.", "Hello! How can I help you?"),
        (f"My name is {name}.", "The user tells me a name.", f"Hello {name}!"),
        (f"What is the capital of {country}?", f"The user asks for the capital of {country}.",
         f"The capital of {country} is {CAPITALS[country]}."),
        (f"Count to {number}.", f"The user wants me to count to {number}.",
         ", ".join(str(i + 1) for i in range(number)) + "."),
        (f"Say: {words}", "The user wants me to repeat words.", words),
        (f"Say: {words}", "The user wants me to repeat words.", words),
        (f"Give me the name {name} and the age {number} as JSON.", "The user wants JSON.",
         json.dumps({"name": name, "age": number}, ensure_ascii=False)),
        ("Thank you.", "The user thanks me.", "You are welcome!"),
    ]  # fmt: skip
    if known:
        choices += [("Who are you?", "The user asks who I am.", "I am " + known[8:])] * 4
    question, reasoning, answer = random.choice(choices)
    dialogue.say("user", question)
    dialogue.say("assistant", answer, reasoning_content=reasoning)


def draw_repetition(random: Random) -> Dialogue:
    """A short dialogue whose answer repeats words of the question."""
    kinds = [made_up, made_up, a_city, a_person, a_word(ITEMS), a_number(0, 999)]
    count = random.randint(1, 14)
    said = " ".join(_spoken(random.choice(kinds)(random)) for _ in range(count))
    dialogue = Dialogue(thinking=random.random() < 0.75)
    dialogue.say("user", f"Say: {said}")
    reasoning = "The user wants me to repeat words."
    dialogue.say("assistant", said, reasoning_content=reasoning)
    return dialogue


def draw(random: Random, tools: int | None = None) -> Dialogue:
    """A dialogue whose last message is the assistant's.

    Parameters
    ----------
    tools : how many functions are shown; drawn too if None.
    """
    if tools is None:
        tools = random.choice([0] * 4 + [1] * 4 + [2] * 4 + [3, 3, 4, 4, 6])
    dialogue = Dialogue(thinking=random.random() < 0.75)
    functions = [_function(random, intent) for intent in random.sample(INTENTS, tools)]
    dialogue.tools = [{"type": "function", "function": f.spec} for f in functions]
    if random.random() < 0.25:
        dialogue.say("system", random.choice(
            ["You are a helpful assistant.", f"You are {a_person(random)}.", "Be brief."]
        ))  # fmt: skip
    for _ in range(random.choice([1] * 6 + [2, 2, 3])):
        kind = random.random()
        if kind < 0.08 or (not functions and kind < 0.2):
            _without_tool(random, dialogue, functions)
        elif not functions or kind < 0.2:
            _talk_turns(random, dialogue)
        else:
            _call_turns(random, dialogue, functions)
            if dialogue.messages[-1].get("tool_calls"):
                break
    return dialogue


def _without_tool(random: Random, dialogue: Dialogue, functions: list[Function]) -> None:
    """A question for whose function no tool is shown."""
    shown = [function.intent for function in functions]
    absent = _function(random, random.choice([i for i in INTENTS if i not in shown]))
    question = _question(random, absent)
    dialogue.say("user", question.text)
    reasoning = f"The user wants {question.thing}. No tool does that."
    dialogue.say("assistant", "I have no tool for that.", reasoning_content=reasoning)

"""What a tokenizer's files ask for beyond tokenizer.json, and which of it is done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from glm_trt.engines.python.special_tokens import AROUND, TOKENIZER_CONFIG, SpecialTokens
from glm_trt.engines.python.tokenizer_files import read_text
from glm_trt.model.errors import BundleError

# Classes that transformers 5.23 builds by code of their own, from parts of tokenizer.json: with
# other default tokens or another pre-tokenizer. It reads tokenizer.json as it stands for all other
# names, known to it or not.
_OWN_CLASSES = """
Albert Bart Barthez Bartpho Bert BertGeneration BertJapanese Bertweet BigBird BioGpt
Blenderbot BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Clvp CodeGen CodeLlama Cohere
ConvBert CpmAnt Cpm DPRContextEncoder DPRQuestionEncoder Deberta DebertaV2 Dia DistilBert Esm
Esmc FNet FSMT FastSpeech2Conformer Flaubert Funnel GPT2 GPTNeoXJapanese GPTNeoX GPTSw3 Gemma
Herbert LED Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Llama Luke Lxmert M2M100 MBart50 MBart MLuke
MPNet Marian MarkupLM Mgpstr MobileBert Mvp MyT5 Nllb Nougat OpenAIGPT PLBart Parakeet Pegasus
Perceiver Phobert Pop2Piano ProphetNet Qwen2 Qwen3_5 Rag Reformer RemBert RoCBert RoFormer
Roberta SeamlessM4T Siglip2 Siglip Speech2Text SpeechT5 Splinter T5 Tapas Tipsv2 Udop VideoPrism
Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper XGLM XLMRoberta XLM XLNet
"""
_BYTE_LEVEL = '"ByteLevel"'
_CLEAN_UP = "clean_up_tokenization_spaces"
_CLEAN_UP_BPE = f"{_CLEAN_UP}_for_bpe_even_though_it_will_corrupt_output"


def is_own_class(name: Any, tokenizer_json: Path) -> bool:
    """Whether transformers does not fill the class `name` from tokenizer.json as it stands."""
    kind = re.sub("Tokenizer(Fast)?$", "", name) if isinstance(name, str) else ""
    if kind == name or kind not in _OWN_CLASSES.split():
        return False
    # Published files of byte-level tokenizers name this class, and transformers knows.
    return not (kind == "Llama" and _BYTE_LEVEL in read_text(tokenizer_json))


def apply_fields(tokenizer: Tokenizer, special: SpecialTokens, files: Mapping[str, Path]) -> None:
    """Make `tokenizer` what the fields of tokenizer_config.json ask for.

    Raises
    ------
    BundleError
        If transformers would make other tokens or text of them than this tokenizer can.
    """
    fields, place = special.fields, files.get(TOKENIZER_CONFIG)
    if is_own_class(name := fields.get("tokenizer_class"), files["tokenizer.json"]):
        raise BundleError(
            f"{place}: tokenizer_class: {name}: transformers builds this class by code of its own, "
            "and not from tokenizer.json as it stands; if tokenizer.json is right, name "
            "TokenizersBackend"
        )
    listed = fields.get("fast_tokenizer_files")
    others = [
        name
        for name in (listed if isinstance(listed, list) else [])
        if isinstance(name, str) and re.search(r"tokenizer\.(.*)\.json", name)
    ]
    if others:
        raise BundleError(
            f"{place}: fast_tokenizer_files: {', '.join(others)}: another tokenizer for newer "
            "versions of transformers; expected tokenizer.json alone: rename it to that, and drop "
            "the field"
        )
    is_bpe = type(tokenizer.model).__name__ == "BPE"
    if fields.get(_CLEAN_UP) and (not is_bpe or fields.get(_CLEAN_UP_BPE)):
        raise BundleError(
            f"{place}: {_CLEAN_UP}: takes spaces out of text that is generated, which is not done "
            "here; expected false, or a tokenizer of BPE without its override"
        )
    tokenizer.encode_special_tokens = bool(fields.get("split_special_tokens"))
    if any(name in fields for name in AROUND):  # of special_tokens_map.json
        before, after = (
            [special.names[name.removeprefix("add_")]]
            if fields.get(name) and name.removeprefix("add_") in special.names
            else []
            for name in AROUND
        )
        tokenizer.post_processor = TemplateProcessing(
            single=[*before, "$A", *after],
            special_tokens=[(text, tokenizer.token_to_id(text)) for text in {*before, *after}],
        )

"""Reports in which every string that is free to be anything is hostile."""

from __future__ import annotations

from typing import Any

STRINGS = {
    "script": "<script>document.title='owned'</script>",
    "handler": "\"'><img src=x onerror=\"document.title='owned'\">",
    "attribute": "x\" onmouseover=\"document.title='owned'",
    "style": "</style><style>*{display:none}</style>",
    "cdata": "<![CDATA[ ]]> <!-- --> ?>",
    "entity": "&lt;b&gt;&#60;i&#62;&amp;lt;u&amp;gt;",
    "link": "http://example.invalid/ www.example.invalid javascript:alert(1) a@example.invalid",
    "markdown": "a|b`c` **d** [e](https://example.invalid) ![f](x) @someone #1 :tada: ``` ~~~ $x$ \\| \\",
    "list": "- [x] done",
    "numbered": "12. twelfth",
    "heading": "# heading",
    "indented": "      code",
    "lines": "a\r\n\r\n# b\n\n- c\u2028d\u0085e\tf",
    "bidi": "exe.\u202egnp.\u2066x\u2069\u200f",
    "nul": "\x00\x1b[2J\x07\x7f\x9b",
    "surrogate": "\ud800\udfff",
    "invisible": "a\u200bb\u00adc\ufeffd\U000e0041",
    "combining": "\u0338first e" + "\u0301" * 50,
    "noncharacter": "\ufffe\U0010ffff\ue000",
    "empty": "",
    "spaces": "   ",
    "long": "x" * 10_000,
    "long and special": "<|`@\ud800" * 2_000,
}

_FIXED = {"outcome", "role", "phase", "metric", "of"}  # of a few words each, by the schema


def with_strings(value: Any, string: str, key: str = "") -> Any:
    """``value`` with every free string in it replaced."""
    if isinstance(value, dict):
        return {name: with_strings(one, string, name) for name, one in value.items()}
    if isinstance(value, list):
        return [with_strings(one, string, key) for one in value]
    return string if isinstance(value, str) and key not in _FIXED else value

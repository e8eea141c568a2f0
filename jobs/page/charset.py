"""Bytes of a page to text: BOM, HTTP header, meta, then UTF-8 where it is valid, else windows-1252.

Order and labels after WHATWG's encoding and HTML standards (https://encoding.spec.whatwg.org, "names and labels").
"""

from __future__ import annotations

import codecs
import re

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_IN_CONTENT = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)  # of a header, and of a meta's `content`
# What a prescan looks at: comments, scripts and styles, which it skips; the end of the head; an XML declaration; a meta
# element with its attributes. Each is matched to its end or to that of the page, without backtracking: many that do not
# end cost no more than one.
_TOKENS = re.compile(
    rb"""<!(?=--).*?(?:-->|\Z) | <(?P<skipped>script|style)\b.*?(?:</(?P=skipped)|\Z)
    | (?P<body></head|<body|<(?:div|p|table)[\s>])
    | <\?xml[^>]{0,256}?\sencoding\s*=\s*["']\s*(?P<xml>[\w.:-]+)
    | <meta[\s/](?P<meta>(?:[^>"']|"[^"]*(?:"|\Z)|'[^']*(?:'|\Z))*+)""",
    re.I | re.S | re.X,
)
_ATTRIBUTES = re.compile(rb"""([^\s/>="']++)(?:\s*+=\s*+(?:"([^"]*)"?|'([^']*)'?|([^\s>"']++)))?""")
_LABEL = re.compile(rb"[\w.:-]+")
_PRESCAN = 1024  # bytes in which a browser looks for a meta element in any case
_HEAD = 1 << 18  # and further as long as the head lasts: 6 to 15 % of pages have it there, behind scripts and styles
# Labels that by the standard mean a superset of the encoding that Python knows by this name.
_SUPERSETS = {
    "big5": "big5hkscs",
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-16-le",
}
# The encodings of the standard, by Python's names. Python's others are no charset of a page: "undefined", which always
# raises and which servers do send; unicode-escape, utf-7, hz, iso2022_kr.
_CODECS = frozenset(
    ["utf-8", "utf-16-le", "utf-16-be", "cp866", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "cp874"]
    + ["gb18030", "big5hkscs", "euc_jp", "iso2022_jp", "cp932", "cp949"]
    + [f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)]
    + [f"cp{n}" for n in range(1250, 1259)]
)
# Labels of the standard that Python lacks.
_LABELS = {
    "x-sjis": "cp932",
    "ms932": "cp932",
    "x-euc-jp": "euc_jp",
    "x-gbk": "gb18030",
    "gb_2312": "gb18030",
    "x-x-big5": "big5hkscs",
    "windows-949": "cp949",
    "iso-8859-8-i": "iso8859-8",
    "iso-8859-8-e": "iso8859-8",
    "dos-874": "cp874",
    "x-mac-roman": "mac-roman",
    "x-mac-cyrillic": "mac-cyrillic",
    "x-mac-ukrainian": "mac-cyrillic",
    "unicode-1-1-utf-8": "utf-8",
    "unicode": "utf-16-le",
    "ucs-2": "utf-16-le",
    "iso-10646-ucs-2": "utf-16-le",
    **{f"x-cp{n}": f"cp{n}" for n in range(1250, 1259)},
}


def codec(label: str) -> str | None:
    """Python codec of a charset label as WHATWG reads it; None for an unknown one."""
    label = label.strip().lower()
    if label in _LABELS:
        return _LABELS[label]
    try:
        info = codecs.lookup(label)
    except (LookupError, ValueError):
        return None
    name = _SUPERSETS.get(info.name, info.name)
    return name if name in _CODECS else None


def _declared(body: bytes) -> str | None:
    """The codec that a page declares, in an XML declaration or a meta element; an unknown label hides no later one.

    After "prescan a byte stream to determine its encoding" of the HTML standard.
    """
    end = _HEAD
    for token in _TOKENS.finditer(body[:_HEAD]):
        if token.start() >= end:
            break
        if token["body"]:
            end = _PRESCAN
        label = token["xml"] or (_label(token["meta"]) if token["meta"] else None)
        if label and (declared := codec(label.decode("ascii", "replace"))):
            # A page whose declaration could be read is not UTF-16.
            return "utf-8" if declared.startswith("utf-16") else declared
    return None


def _label(meta: bytes) -> bytes | None:
    """The label in the attributes of a meta element: `charset`, or `content` where it stands for a Content-Type."""
    attributes: dict[bytes, bytes] = {}
    for name, *values in _ATTRIBUTES.findall(meta):
        attributes.setdefault(name.lower(), b"".join(values).strip())
    if label := _LABEL.match(attributes.get(b"charset", b"")):
        return label[0]
    if attributes.get(b"http-equiv", b"").lower() != b"content-type":
        return None
    content = _IN_CONTENT.search(attributes.get(b"content", b"").decode("ascii", "replace"))
    return content[1].encode() if content else None


def decode(body: bytes, content_type: str) -> tuple[str, str]:
    """Text of the page, and the codec used. Never raises: bytes that cannot be decoded become U+FFFD."""
    for bom, name in _BOMS:
        if body.startswith(bom):
            return body[len(bom) :].decode(name, "replace"), name
    header = _IN_CONTENT.search(content_type)
    declared = (codec(header[1]) if header else None) or _declared(body)
    if declared and declared != "utf-8":
        return body.decode(declared, "replace"), declared
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        if declared or error.end >= len(body) - 3:  # declared as UTF-8, or only truncated in its last character
            return body.decode("utf-8", "replace"), "utf-8"
        return body.decode("cp1252", "replace"), "cp1252"

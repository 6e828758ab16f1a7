"""What the library is given, field by field as the C says: the headers, step.c and conv.c."""

import ctypes
from ctypes import c_float, c_int, c_ssize_t, c_void_p

SIZE, POINTER = c_ssize_t, c_void_p


class CPanels(ctypes.Structure):
    """`Panels`."""

    _fields_ = (
        *((name, SIZE) for name in ("outputs", "width", "block")),
        *((name, c_int) for name in ("bits", "books", "zero")),
        *((name, POINTER) for name in ("codes", "scale", "zeros", "book", "unit", "bias")),
    )


class CLayout(ctypes.Structure):
    """`Layout`."""

    _fields_ = (*((name, SIZE) for name in ("inputs", "group", "wide")), ("levels", c_int))


class CConv(ctypes.Structure):
    """`Conv` of conv.c."""

    _fields_ = (
        *((name, SIZE) for name in ("channels", "height", "width", "outputs", "high", "wide")),
        *((name, SIZE * 2) for name in ("stride", "before", "reach")),
        *((name, SIZE) for name in ("rows", "groups", "runs")),
        *((name, c_int) for name in ("levels", "whole", "last")),
    )


class CColumns(ctypes.Structure):
    """`Columns`."""

    _fields_ = (("at", POINTER), ("stride", SIZE))


class CSource(ctypes.Structure):
    """`Source`."""

    _fields_ = (
        ("from_", CColumns),
        ("gate", CColumns),
        ("weight", POINTER),
        ("bias", POINTER),
        ("width", SIZE),
        ("kind", c_int),
        ("shape", c_int),
        ("eps", c_float),
    )


class CDense(ctypes.Structure):
    """`Dense`."""

    _fields_ = (
        *((name, POINTER) for name in ("weight", "bias", "mask", "starts")),
        *((name, SIZE) for name in ("outputs", "inputs")),
        *((name, c_int) for name in ("type", "from_")),
    )


class CRounding(ctypes.Structure):
    """`Rounding`."""

    _fields_ = (
        ("layout", CLayout),
        *((name, SIZE) for name in ("block", "width")),
        *((name, POINTER) for name in ("x", "xs", "xt")),
        *((name, SIZE) for name in ("room", "blocks")),
    )


class CProduct(ctypes.Structure):
    """`Product`."""

    _fields_ = (("panels", POINTER), ("dense", POINTER), ("rounding", SIZE), ("to", CColumns), ("add", c_int))


class CLinear(ctypes.Structure):
    """`Linear`."""

    _fields_ = (
        ("source", CSource),
        *((name, POINTER) for name in ("roundings", "products")),
        *((name, SIZE) for name in ("rounding_count", "product_count")),
        *((name, POINTER) for name in ("made", "narrow")),
        ("room", SIZE),
        ("there", c_int),
    )


class CRotary(ctypes.Structure):
    """`Rotary`."""

    _fields_ = (*((name, POINTER) for name in ("frequency", "cosine", "sine")), ("half", SIZE), ("scale", c_float))


class CAttention(ctypes.Structure):
    """`Attention`."""

    _fields_ = (
        *((name, CColumns) for name in ("query", "key", "value", "to")),
        *((name, SIZE) for name in ("heads", "groups", "size")),
        *((name, POINTER) for name in ("query_norm", "key_norm", "rotary", "pages")),
        ("window", SIZE),
        ("type", c_int),
        *((name, c_float) for name in ("eps", "scale", "cap")),
    )


class CWhole(ctypes.Structure):
    """`Whole`."""

    _fields_ = (
        *((name, CColumns) for name in ("query", "key", "value", "to")),
        *((name, SIZE) for name in ("heads", "size")),
        ("scale", c_float),
    )


class CEmbed(ctypes.Structure):
    """`Embed`."""

    _fields_ = (
        *((name, POINTER) for name in ("panels", "dense")),
        *(("layout", CLayout), ("to", CColumns), ("scale", c_float), ("by", c_int)),
    )


class CMake(ctypes.Structure):
    """`Make`."""

    _fields_ = (
        ("source", CSource),
        ("to", CColumns),
        ("turn", SIZE),
        ("made", POINTER),
        ("room", SIZE),
        ("add", c_int),
    )


class CBound(ctypes.Structure):
    """`Bound`."""

    _fields_ = (("at", POINTER), ("width", SIZE), ("cap", c_float))


class CRest(ctypes.Structure):
    """`Rest`."""

    _fields_ = (("at", CColumns), ("width", SIZE))


class CPick(ctypes.Structure):
    """`Pick`."""

    _fields_ = (("rests", POINTER), ("count", SIZE))


class CExperts(ctypes.Structure):
    """`Experts`."""

    _fields_ = (
        *((name, POINTER) for name in ("gates", "sums", "scores")),
        *((name, CColumns) for name in ("said", "to")),
        *((name, SIZE) for name in ("experts", "top", "width")),
        *((name, POINTER) for name in ("weights", "asked")),
        ("whole", c_int),
    )


class COperation(ctypes.Structure):
    """`Operation`."""

    _fields_ = (("code", SIZE), ("what", POINTER))


class CPart(ctypes.Structure):
    """`Part`."""

    _fields_ = (*((name, SIZE) for name in ("row", "count", "place")), ("pages", POINTER))


class CPass(ctypes.Structure):
    """`Pass`."""

    _fields_ = (
        *((name, SIZE) for name in ("rows", "parts", "picks")),
        *((name, POINTER) for name in ("tokens", "places", "types", "slots", "picked", "part")),
    )


class CMap(ctypes.Structure):
    """`Map` of images.h."""

    _fields_ = tuple((name, SIZE) for name in ("at", "most", "high", "wide", "channels", "splits"))


class CStretch(ctypes.Structure):
    """`Stretch`."""

    _fields_ = (("from_", SIZE), ("count", SIZE))


class CStep(ctypes.Structure):
    """`Step`."""

    _fields_ = (
        ("from_", CMap),
        ("to", CMap),
        ("other", SIZE),
        *((name, c_int) for name in ("before", "after", "deed", "inputs", "levels", "whole", "offset", "pairs")),
        *((name, c_int) for name in ("mean", "adaptive", "inside", "output")),
        ("rows", SIZE),
        *((name, SIZE * 2) for name in ("stride", "pad", "reach")),
        *((name, SIZE) for name in ("groups", "group", "parts", "runs", "entries")),
        *((name, POINTER) for name in ("stretches", "weights", "sums", "scale", "unit", "bias")),
        *((name, SIZE) for name in ("channel", "channels")),
    )


class COutside(ctypes.Structure):
    """`Outside`."""

    _fields_ = (("at", POINTER), *((name, SIZE) for name in ("image", "channel", "row", "column")))

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the golden vectors beside it: numbers.txt and one <format>.txt per cache record.

Everything is exact rational arithmetic: a number format is the sorted list of all values it can
hold, and rounding is a search in that list. No bit tricks, no floating point, no code in common
with the library. Run it in this folder; the files are committed, and a test compares the library
with them byte for byte. README.md has the file syntax.
"""

import bisect
import random
from fractions import Fraction as F

NAN, INF = "nan", "inf"


class Format:
    """Sign, exponent and mantissa bits; every non-negative finite value in code order."""

    def __init__(self, ebits, mbits, bias, finite_codes, inf_code, nan_code):
        self.bits = 1 + ebits + mbits
        self.inf_code, self.nan_code = inf_code, nan_code
        self.values = []
        for code in range(finite_codes):
            e, m = divmod(code, 1 << mbits)
            if e == 0:
                value = F(m, 1 << mbits) * F(2) ** (1 - bias)
            else:
                value = (1 + F(m, 1 << mbits)) * F(2) ** (e - bias)
            self.values.append(value)
        self.step_out = 2 * self.values[-1] - self.values[-2]  # where the next value would be

    def decode(self, code):
        sign = code >> (self.bits - 1)
        magnitude = code & ((1 << (self.bits - 1)) - 1)
        if magnitude < len(self.values):
            return -self.values[magnitude] if sign else self.values[magnitude]
        if magnitude == self.inf_code:
            return "-inf" if sign else INF
        return NAN

    def encode(self, value, negative=False, saturate=False):
        """Nearest code, ties to the even one. negative: the sign when value is zero."""
        negative = value < 0 or (value == 0 and negative)
        value = abs(value)
        at = bisect.bisect_left(self.values, value)
        if at == len(self.values):  # above the largest
            middle = (self.values[-1] + self.step_out) / 2
            over = value >= middle and not saturate  # the largest code is odd here: ties go out
            code = self.inf_code if over else len(self.values) - 1
        elif self.values[at] == value:
            code = at
        else:
            below, above = value - self.values[at - 1], self.values[at] - value
            code = at if above < below or (above == below and at % 2 == 0) else at - 1
        return code | (1 << (self.bits - 1) if negative else 0)


BF16 = Format(8, 7, 127, 0x7F80, 0x7F80, 0x7FC0)
F16 = Format(5, 10, 15, 0x7C00, 0x7C00, 0x7E00)
E4M3 = Format(4, 3, 7, 0x7F, None, 0x7F)
E2M1 = Format(2, 1, 1, 8, None, None)
E2M1_ZERO_UP = [F(1, 4), F(3, 4), F(5, 4), F(7, 4), F(5, 2), F(7, 2), F(5)]


def binary(value, mbits, emin, emax):
    """A finite rational as (negative, exponent field, mantissa), rounded to nearest even; used for
    f32 and f64, whose value lists are too long to write down."""
    negative, value = value < 0, abs(value)
    if value == 0:
        return negative, 0, 0
    e = 0
    while F(2) ** (e + 1) <= value:
        e += 1
    while F(2) ** e > value:
        e -= 1
    e = max(e, emin)
    units = value / F(2) ** (e - mbits)  # in steps of the format at this size
    whole, rest = divmod(units.numerator, units.denominator)
    rest = F(rest, units.denominator)
    if rest > F(1, 2) or (rest == F(1, 2) and whole % 2):
        whole += 1
    if whole == 1 << (mbits + 1):
        whole, e = whole // 2, e + 1
    if e > emax:
        return negative, emax - emin + 2, 0
    if whole < 1 << mbits:
        return negative, 0, whole
    return negative, e - emin + 1, whole - (1 << mbits)


def word(value, negative_zero=False, mbits=23, emin=-126, emax=127, ebits=8):
    if value == NAN:
        return (((1 << ebits) - 1) << mbits) | 1 << (mbits - 1)
    if value in (INF, "-inf"):
        return (((1 << ebits) - 1) << mbits) | (value == "-inf") << (mbits + ebits)
    n, e, m = binary(value, mbits, emin, emax)
    return (n or (value == 0 and negative_zero)) << (mbits + ebits) | e << mbits | m


def word64(value, negative_zero=False):
    return word(value, negative_zero, 52, -1022, 1023, 11)


def unword(bits, mbits=23, emin=-126, ebits=8):
    e, m = bits >> mbits & ((1 << ebits) - 1), bits & ((1 << mbits) - 1)
    sign = -1 if bits >> (mbits + ebits) else 1
    if e == (1 << ebits) - 1:
        return NAN if m else INF if sign > 0 else "-inf"
    if e == 0:
        return sign * F(m, 1 << mbits) * F(2) ** emin
    return sign * (1 + F(m, 1 << mbits)) * F(2) ** (e - 1 + emin)


def unword64(bits):
    return unword(bits, 52, -1022, 11)


def f32(value):
    """value rounded to the nearest float."""
    return unword(word(value))


DTYPES = {
    "bf16": (4, BF16.decode, 0x8000),
    "f16": (4, F16.decode, 0x8000),
    "f32": (8, unword, 0x80000000),
}


class Value:
    """An input: its exact value or NAN, INF, "-inf", and the sign of a zero."""

    def __init__(self, dtype, bits):
        self.x = DTYPES[dtype][1](bits)
        self.negative = bool(bits & DTYPES[dtype][2])
        self.finite = not isinstance(self.x, str)


def amax(values):
    return max([abs(v.x) for v in values if v.finite], default=F(0))


def power_above(x):
    """The least power of two >= x."""
    p = F(1)
    while p < x:
        p *= 2
    while p / 2 >= x:
        p /= 2
    return p


def exponent_of(power):
    return next(e for e in range(-200, 201) if F(2) ** e == power)


def e4m3_codes(values, scale):
    codes = []
    for v in values:
        if not v.finite:
            codes.append(0x7F)
        else:
            codes.append(E4M3.encode(f32(v.x / scale), v.negative, saturate=True))
    return codes


def latent_scale(values, rule):
    if rule == "f32":
        return max(f32(amax(values) / 448), F(2) ** -126)
    return power_above(max(amax(values) / 448, F(1, 10000)))


def index_scale(values, rule):
    tiny = f32(F(1, 10000))
    if rule == "f32":
        return f32(max(amax(values), tiny) / 448)
    return power_above(max(amax(values), tiny) / 448)


def bf16_bytes(values):
    out = []
    for v in values:
        if v.x == NAN:
            code = 0x7FC0
        elif not v.finite:
            code = 0xFF80 if v.x == "-inf" else 0x7F80
        else:
            code = BF16.encode(v.x, v.negative)
        out += [code & 255, code >> 8]
    return out


def word_bytes(bits):
    return [bits >> s & 255 for s in (0, 8, 16, 24)]


def tiles(values, n):
    return [values[i : i + n] for i in range(0, len(values), n)]


# A writer returns (row, footer): the footer goes behind all rows of the page.


def write_fp8_ds_mla(v, rule):
    data, scales = [], []
    for t in tiles(v[:512], 128):
        s = latent_scale(t, rule)
        data += e4m3_codes(t, s)
        scales += word_bytes(word(s))
    return data + scales + bf16_bytes(v[512:]), []


def write_model1(v, rule):
    data, scales = [], []
    for t in tiles(v[:448], 64):
        s = latent_scale(t, rule)
        data += e4m3_codes(t, s)
        scales.append(exponent_of(s) + 127)
    return data + bf16_bytes(v[448:]), scales + [0]


def write_v41(v, rule):
    data, scales = [], []
    for t in tiles(v, 32):
        s = latent_scale(t, rule)
        data += e4m3_codes(t, s)
        scales.append(exponent_of(s) + 127)
    return data, scales


def pack_nibbles(codes):
    return [codes[i] | codes[i + 1] << 4 for i in range(0, len(codes), 2)]


def write_nvfp4(v, rule):
    data, scales = [], [None] * 32
    for s, t in enumerate(tiles(v[:512], 16)):
        place = 8 * (s % 4) + s // 4
        if not all(x.finite for x in t):
            scales[place] = 0x7F
            data += [0] * 8
            continue
        want = max(f32(amax(t) / 6), F(1, 512))
        code = next((c for c in range(0x7F) if E4M3.values[c] >= want), 0x7E)
        scales[place] = code
        inverse = f32(1 / E4M3.values[code])
        data += pack_nibbles(
            [E2M1.encode(f32(x.x * inverse), x.negative, saturate=True) for x in t]
        )
    rope = e4m3_codes(v[512:], F(1))
    return data + rope + scales, []


def write_index_fp8(v, rule):
    s = index_scale(v, rule)
    return e4m3_codes(v, s), word_bytes(word(s))


def write_index_fp4(v, rule):
    data, scales = [], []
    for t in tiles(v, 32):
        if not all(x.finite for x in t):
            data += [0] * 16
            scales.append(255)
            continue
        s = power_above(max(amax(t), f32(F(1, 10000))) / 6)
        codes = []
        for x in t:
            code = sum(abs(x.x) / s > limit for limit in E2M1_ZERO_UP)
            codes.append(code + 8 if code and x.x < 0 else code)
        data += pack_nibbles(codes)
        scales.append(exponent_of(s) + 127)
    return data, scales


# A reader turns (row, footer) into exact values; (value, negative_zero).


def times(value, code_negative, scale):
    if isinstance(value, str) or isinstance(scale, str):
        if NAN in (value, scale) or value == 0 or scale == 0:
            return NAN, False
        negative = code_negative != (scale == "-inf" or (not isinstance(scale, str) and scale < 0))
        return ("-inf" if negative else INF), False
    return value * scale, code_negative != (scale < 0)


def read_e4m3(codes, scale):
    return [times(E4M3.decode(c), c >= 128, scale) for c in codes]


def read_bf16(data):
    codes = [data[i] | data[i + 1] << 8 for i in range(0, len(data), 2)]
    return [(BF16.decode(c), c >= 0x8000) for c in codes]


def ue8m0(code):
    return NAN if code == 255 else F(2) ** (code - 127)


def f32_at(data, at):
    return unword(sum(data[at + i] << 8 * i for i in range(4)))


def read_fp8_ds_mla(row, footer):
    out = []
    for s in range(4):
        out += read_e4m3(row[128 * s : 128 * s + 128], f32_at(row, 512 + 4 * s))
    return out + read_bf16(row[528:])


def read_model1(row, footer):
    out = []
    for s in range(7):
        out += read_e4m3(row[64 * s : 64 * s + 64], ue8m0(footer[s]))
    return out + read_bf16(row[448:])


def read_v41(row, footer):
    out = []
    for s in range(16):
        out += read_e4m3(row[32 * s : 32 * s + 32], ue8m0(footer[s]))
    return out


def read_e2m1(data, scale):
    out = []
    for byte in data:
        for code in (byte & 15, byte >> 4):
            out.append(times(E2M1.decode(code), code >= 8, scale))
    return out


def read_nvfp4(row, footer):
    out = []
    for s in range(32):
        scale = E4M3.decode(row[320 + 8 * (s % 4) + s // 4])
        out += read_e2m1(row[8 * s : 8 * s + 8], scale)
    return out + read_e4m3(row[256:320], F(1))


def read_index_fp8(row, footer):
    return read_e4m3(row, f32_at(footer, 0))


def read_index_fp4(row, footer):
    out = []
    for s in range(4):
        out += read_e2m1(row[16 * s : 16 * s + 16], ue8m0(footer[s]))
    return out


# name: values a token, width of a tile, row bytes, footer bytes, writer, reader
RECORDS = {
    "fp8_ds_mla": (576, 128, 656, 0, write_fp8_ds_mla, read_fp8_ds_mla),
    "model1": (512, 64, 576, 8, write_model1, read_model1),
    "v41": (512, 32, 512, 16, write_v41, read_v41),
    "nvfp4_ds_mla": (576, 16, 352, 0, write_nvfp4, read_nvfp4),
    "index_fp8": (128, 128, 128, 4, write_index_fp8, read_index_fp8),
    "index_fp4": (128, 32, 64, 4, write_index_fp4, read_index_fp4),
}


def squeeze(words):
    """Runs as word*count."""
    out, i = [], 0
    while i < len(words):
        n = 1
        while i + n < len(words) and words[i + n] == words[i]:
            n += 1
        out.append(words[i] + (f"*{n}" if n > 1 else ""))
        i += n
    return " ".join(out)


def page_of(record, page_size, rows):
    """rows: {slot: (row, footer)}; a page whose other bytes are A5."""
    row_bytes, footer_bytes = RECORDS[record][2:4]
    page = [0xA5] * (page_size * (row_bytes + footer_bytes))
    for slot, (row, footer) in rows.items():
        page[slot * row_bytes : (slot + 1) * row_bytes] = row
        at = page_size * row_bytes + slot * footer_bytes
        page[at : at + footer_bytes] = footer
    return page


def back_line(record, rows):
    out = []
    for row, footer in rows:
        for value, negative in RECORDS[record][5](row, footer):
            digits = f"{word64(value, negative):016x}" if value != NAN else "nan"
            out.append(digits.rstrip("0") or "0")
    return "back " + squeeze(out)


def write_case(file, record, name, note, dtype, tokens, rule="default", page_size=1, slots=(0,)):
    """tokens: lists of input words, one list a token."""
    digits = DTYPES[dtype][0]
    rows = [RECORDS[record][4]([Value(dtype, b) for b in t], rule) for t in tokens]
    file.write(f"# {note}\ncase {name}\nrule {rule}\ndtype {dtype}\npage_size {page_size}\n")
    file.write("slots " + " ".join(map(str, slots)) + "\n")
    file.write("values " + squeeze([f"{b:0{digits}x}" for t in tokens for b in t]) + "\n")
    page = page_of(record, page_size, dict(zip(slots, rows)))
    file.write("page " + squeeze([f"{b:02x}" for b in page]) + "\n")
    file.write(back_line(record, rows) + "\n\n")
    return rows


def read_case(file, record, name, note, row, footer):
    file.write(f"# {note}\ncase {name}\npage_size 1\nslots 0\n")
    file.write("page " + squeeze([f"{b:02x}" for b in row + footer]) + "\n")
    file.write(back_line(record, [(row, footer)]) + "\n\n")


def bf16(x):
    """A bf16 word that must hold x exactly."""
    code = BF16.encode(F(x))
    assert BF16.decode(code) == F(x), x
    return code


def fill(width, first):
    return (first + [0] * width)[:width]


def random_bf16(rng, spread):
    """Any sign and mantissa, exponent within spread of 1.0; some zeros."""
    if rng.randrange(16) == 0:
        return rng.randrange(2) << 15
    return rng.randrange(2) << 15 | (127 + rng.randint(-spread, 3)) << 7 | rng.randrange(128)


def random_f32(rng, spread):
    return rng.randrange(2) << 31 | (127 + rng.randint(-spread, 3)) << 23 | rng.randrange(1 << 23)


def random_f16(rng):
    return rng.randrange(2) << 15 | rng.randrange(0x7C00)


def record_file(record):
    width, tile, row_bytes, footer_bytes = RECORDS[record][:4]
    file = open(f"{record}.txt", "w", encoding="ascii")
    file.write("# SPDX-License-Identifier: Apache-2.0\n")
    file.write("# Written by make_golden.py; syntax in README.md.\n\n")
    rng = random.Random("mla golden " + record)

    # Hand-worked: no value at all. Scale floor 1e-4 -> 2^-13 (latent), 1e-4/448 -> 2^-22 (index
    # fp8), 1e-4/6 -> 2^-15 (index fp4), smallest e4m3 2^-9 (nvfp4); every element code is 0.
    rows = write_case(file, record, "zero", "all values zero", "bf16", [[0] * width])
    row, footer = rows[0]
    by_hand = {
        "fp8_ds_mla": (row[512:516], [0x00, 0x00, 0x00, 0x39]),  # 2^-13: exponent field 114
        "model1": (footer, [114] * 7 + [0]),
        "v41": (footer, [114] * 16),
        "nvfp4_ds_mla": (row[320:], [1] * 32),
        "index_fp8": (footer, [0x00, 0x00, 0x80, 0x34]),  # 2^-22: exponent field 105
        "index_fp4": (footer, [112] * 4),
    }
    assert by_hand[record][0] == by_hand[record][1], (record, by_hand[record])
    assert not any(row[: tile // 2])

    # Hand-worked: amax 448·2^k sits exactly on a power of two, so scale is 2^k and the element is
    # 448 (0x7E). One bf16 step more and the scale doubles, the element is about 224 (0x76).
    exact, more, less = bf16(448), bf16(448) + 1, bf16(448) - 1
    rows = write_case(file, record, "amax_448", "amax = 448", "bf16", [fill(width, [exact])])
    if "4" not in record.replace("v41", ""):
        assert rows[0][0][0] == 0x7E
    rows = write_case(file, record, "amax_above", "amax one bf16 step above 448", "bf16",
                      [fill(width, [more])])
    if "4" not in record.replace("v41", ""):
        assert rows[0][0][0] == 0x76
    write_case(file, record, "amax_below", "amax one bf16 step below 448", "bf16",
               [fill(width, [less])])
    write_case(file, record, "amax_six", "amax = 6, 6/128 and their neighbours", "bf16",
               [fill(width, ([bf16(6), *[0] * (tile - 1), bf16(6) + 1, *[0] * (tile - 1)]
                             + [bf16(6) - 1, *[0] * (tile - 1), bf16(F(6, 128))])[:width])])

    # Around scale 1 (a 448 in each tile): ties between neighbouring e4m3 codes go to the even one,
    # 1.0625 -> 1, 1.1875 -> 1.25; 2^-10 is half the smallest subnormal -> 0; 3·2^-10 -> 2^-8.
    ties = [F(17, 16), F(19, 16), F(1, 1024), F(3, 1024), F(5, 1024), F(7, 1024), F(1, 512),
            F(33, 2048), F(31, 2048), F(15, 1024), F(17, 1024), F(208), F(232), F(248), F(432),
            F(440)]
    ties = [bf16(t) for t in ties]
    ties += [t | 0x8000 for t in ties]
    tie_tile = [bf16(448)] + (ties * 8)[: tile - 1]
    tokens = [(tie_tile * 64)[:width]]
    rows = write_case(file, record, "ties", "ties and e4m3 subnormals at scale 1", "bf16", tokens)
    if record == "fp8_ds_mla":
        assert rows[0][0][:6] == [0x7E, 0x38, 0x3A, 0x00, 0x02, 0x02]

    # e2m1 ties at scale 1 (a 6 in each block): to even, or towards zero in the indexer's fp4.
    quarter = [F(1, 4), F(3, 4), F(5, 4), F(7, 4), F(5, 2), F(7, 2), F(5)]
    ties = [bf16(t) for t in quarter] + [bf16(-t) for t in quarter]
    tie_tile = [bf16(6)] + ties + [0x8000]
    rows = write_case(file, record, "ties_e2m1", "ties of e2m1 where the scale is 1", "bf16",
                      [(tie_tile * 64)[:width]])
    if record == "nvfp4_ds_mla":  # codes 7 | 0 2 2 4 4 6 6 | 8 a a c c e e | 8
        assert rows[0][0][:8] == [0x07, 0x22, 0x44, 0x66, 0xA8, 0xCA, 0xEC, 0x8E]
    if record == "index_fp4":  # codes 7 | 0 1 2 3 4 5 6 | 0 9 a b c d e | 0
        assert rows[0][0][:8] == [0x07, 0x21, 0x43, 0x65, 0x90, 0xBA, 0xDC, 0x0E]

    write_case(file, record, "signed_zero", "+0 and -0", "bf16", [([0, 0x8000] * width)[:width]])
    write_case(file, record, "tiny", "bf16 subnormals and the smallest normals", "bf16",
               [([1, 0x8001, 0x7F, 0x80, 0x8080, 0x100] * width)[:width]])
    write_case(file, record, "largest", "largest bf16, both signs, beside ones", "bf16",
               [([0x7F7F, 0xFF7F, bf16(1)] * width)[:width]])
    write_case(file, record, "largest_f32", "largest f32 (the bf16 part overflows to inf)", "f32",
               [([0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000] * width)[:width]])
    odd = [0] * width
    for i, bits in enumerate([0x7FC0, 0x7F80, 0xFF80, 0xFFC1]):
        odd[i * (width // 4) + 1] = bits
    odd = [b or random_bf16(rng, 4) for b in odd]
    odd[-1], odd[-2] = 0x7F80, 0x7FC0
    write_case(file, record, "nonfinite", "NaN and inf beside ordinary values", "bf16", [odd])
    write_case(file, record, "all_nan", "nothing finite", "bf16", [[0x7FC0] * width])

    write_case(file, record, "random", "random bf16, 3 tokens of a page of 4", "bf16",
               [[random_bf16(rng, s) for _ in range(width)] for s in (2, 8, 24)],
               page_size=4, slots=(3, 0, 2))
    write_case(file, record, "random_f32", "random f32", "f32",
               [[random_f32(rng, 6) for _ in range(width)]])
    write_case(file, record, "random_f16", "random f16, all exponents", "f16",
               [[random_f16(rng) for _ in range(width)]])

    if record in ("fp8_ds_mla", "index_fp8"):
        # Hand-worked: amax 1 gives 1/448 = 0x3b124925 as float, not a power of two; 1 -> 448.
        rows = write_case(file, record, "f32_ones", "scale amax/448", "bf16",
                          [[bf16(1)] * width], rule="f32")
        scale = rows[0][0][512:516] if record == "fp8_ds_mla" else rows[0][1]
        assert scale == [0x25, 0x49, 0x12, 0x3B] and rows[0][0][0] == 0x7E
        write_case(file, record, "f32_zero", "scale at its floor", "bf16", [[0] * width],
                   rule="f32")
        write_case(file, record, "f32_random", "scale amax/448, 2 tokens of a page of 3", "bf16",
                   [[random_bf16(rng, s) for _ in range(width)] for s in (3, 9)], rule="f32",
                   page_size=3, slots=(2, 1))
        write_case(file, record, "f32_random_f32", "scale amax/448 of f32 values", "f32",
                   [[random_f32(rng, 5) for _ in range(width)]], rule="f32")
        write_case(file, record, "f32_largest", "largest f32", "f32",
                   [([0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000] * width)[:width]], rule="f32")

        # Values next to ties, where dividing by the scale and multiplying by its reciprocal round
        # to different codes: records are written by division.
        write_case(file, record, "f32_divide", "x / scale is not x * (1 / scale)", "f32",
                   [division_traps(rng, width, tile)], rule="f32")
    if record == "nvfp4_ds_mla":
        # Here the reciprocal rules: x = tie * scale, 1/scale not exact.
        traps = []
        for code in range(0x31, 0x3F):
            scale = E4M3.values[code]
            inverse = f32(1 / scale)
            found = [t * scale for t in E2M1_ZERO_UP
                     if E2M1.encode(f32(t * scale * inverse)) != E2M1.encode(t)]
            if found:
                found = [6 * scale] + (found * 16)[:15]
                traps += [word(x) | (i % 2) << 31 for i, x in enumerate(found)]
        assert len(traps) >= 16
        write_case(file, record, "reciprocal", "x * (1 / scale) is not x / scale", "f32",
                   [(traps * 36)[:512] + [0] * 64])

    # Readers take whatever is stored: every byte value, any scale.
    row = [rng.randrange(256) for _ in range(row_bytes)]
    footer = [rng.randrange(256) for _ in range(footer_bytes)]
    if record in ("model1", "v41", "index_fp4"):
        footer[:4] = [0, 255, 254, 1]
    read_case(file, record, "any_bytes", "random bytes as a record", row, footer)
    if record in ("fp8_ds_mla", "index_fp8"):
        scales = [0x3DCCCCCD, 0x00000001, 0x7F800000, 0xBFC00001]  # 0.1f, least, inf, negative
        for i, scale in enumerate(scales if record == "fp8_ds_mla" else scales[:1]):
            part = row if record == "fp8_ds_mla" else footer
            at = 512 + 4 * i if record == "fp8_ds_mla" else 0
            part[at : at + 4] = word_bytes(scale)
        read_case(file, record, "odd_scales", "scales 0.1, 2^-149, inf, -1.5", row, footer)
    file.close()


def division_traps(rng, width, tile):
    out = []
    while len(out) < width:
        top = unword(random_f32(rng, 0) & 0x7FFFFFFF)
        scale = f32(top / 448)
        inverse = f32(1 / scale)
        block = [word(top)]
        for low, high in zip(E4M3.values[64:], E4M3.values[65:]):
            near = word((low + high) / 2 * scale)
            for bits in (near - 1, near, near + 1):
                x = unword(bits)
                if E4M3.encode(f32(x / scale)) != E4M3.encode(f32(x * inverse)):
                    block.append(bits | rng.randrange(2) << 31)
        if len(block) > 1:
            out += (block * tile)[:tile]
    return out[:512] + [0] * (width - 512) if width > 512 else out


def numbers_file():
    """Roundings of single numbers: the input as f64, then its bf16, f16; and where the input is a
    float: e4m3 and e2m1 (the last two saturate)."""
    rng = random.Random("mla golden numbers")
    inputs = set()

    def around(x):
        """x, its neighbours in f64, and in f32."""
        bits = word64(x)
        for b in (bits - 1, bits, bits + 1):
            inputs.add(b)
        bits = word(x)
        for b in (bits - 1, bits, bits + 1):
            value = unword(b) if 0 <= b < 1 << 32 else NAN
            if value not in (NAN, INF, "-inf"):
                inputs.add(word64(value))

    for fmt in (BF16, F16):
        top = len(fmt.values)
        codes = {0, 1, 2, 3, top - 1, top - 2} | {rng.randrange(top - 1) for _ in range(60)}
        for code in sorted(codes):
            low = fmt.values[code]
            high = fmt.values[code + 1] if code + 1 < top else fmt.step_out
            if low:
                around(low)
            middle = (low + high) / 2
            around(middle)
            # Double rounding traps: a hair off the tie, lost by a detour through float.
            for hair in (F(2) ** -40, -(F(2) ** -40), F(2) ** -30):
                inputs.add(word64(middle + hair * (high - low)))
    for fmt in (E4M3, E2M1):
        for low, high in zip(fmt.values, fmt.values[1:]):
            around((low + high) / 2)
            if low:
                around(low)
        around(fmt.values[-1])
        around(fmt.step_out)
        around((fmt.values[-1] + fmt.step_out) / 2)
    inputs |= {0, 1, word64(F(2) ** -1022), word64(F(2) ** 1023), word64(F(2) ** -149),
               word64(F(2) ** -150), word64(F(2) ** 128)}
    inputs |= {b | 1 << 63 for b in inputs}
    with open("numbers.txt", "w", encoding="ascii") as file:
        file.write("# SPDX-License-Identifier: Apache-2.0\n")
        file.write("# Written by make_golden.py. Columns: f64 bits, bf16, f16, then for values that\n"
                   "# a float can hold e4m3 and e2m1, else - -.\n")
        for bits in sorted(inputs):
            x, negative = unword64(bits), bits >> 63 == 1
            line = f"{bits:016x} {BF16.encode(x, negative):04x} {F16.encode(x, negative):04x}"
            if f32(x) == x:
                line += f" {E4M3.encode(x, negative, True):02x} {E2M1.encode(x, negative, True):x}"
            else:
                line += " - -"
            file.write(line + "\n")


if __name__ == "__main__":
    # Hand-worked: 1 + 2^-8 is midway between bf16 1 and 1 + 2^-7; a hair above it goes up, but a
    # detour through float loses the hair and then ties to even, down.
    assert BF16.encode(1 + F(1, 256)) == 0x3F80
    assert BF16.encode(1 + F(1, 256) + F(2) ** -40) == 0x3F81
    assert BF16.encode(f32(1 + F(1, 256) + F(2) ** -40)) == 0x3F80
    assert E4M3.encode(F(464), saturate=True) == 0x7E and E2M1.encode(F(5)) == 6
    numbers_file()
    for name in RECORDS:
        record_file(name)

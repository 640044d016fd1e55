"""Entry points of the C module. Each gives `make(random) -> arguments` and `run(arguments)`; no folder is needed."""

import math

import numpy as np
import tiny

from fuzz.mutate import NUMBERS
from styleid import _core

STEPS = 2
CONFIG = tiny.config(text=True)
WEIGHTS = tiny.weights(CONFIG)
MODEL = _core.Model(CONFIG, WEIGHTS)
INVERSION = _core.invert(MODEL, tiny.latents(), tiny.CONTEXT, STEPS, "diffusers", (2, 3), ("both",), "float32")[0]
STRENGTHS = np.ones((STEPS, 4), np.float32)
DTYPES = ["float32"] * 24 + ["float64", "uint8", "uint16", "int32", ">f4", "bool", "complex64", "O"]
SPECIAL = [0, 1, 200, 3e38, np.nan, np.inf, -np.inf]
NOISE = np.random.default_rng(0).random(1 << 14)


# ---- random arguments; most are right, so that not all calls end at the first of them ----


def junk(random):
    return random.choice((None, True, random.randrange(-2, 1003), random.choice(NUMBERS), -(2**63), 10**30, random.uniform(-2, 2), np.nan,
                          np.inf, "", "ab", b"ab", object(), [], {}, (), np.float32(1), np.zeros(0, np.float32)))  # fmt: skip


def rarely(random, value, other=junk):
    """Returns the value, and once in a while something else."""
    return other(random) if random.randrange(24) == 0 else value


def array(random, *sizes):
    """An array, usually of the wanted sizes and type; sometimes it is strided, has a special value, or a wrong size or type."""
    wrong = random.randrange(4) == 0
    if wrong:
        sizes = [random.choice((size, size, size, 0, 1, size + 1, 2 * size)) for size in sizes]
        if random.randrange(6) == 0:
            sizes = sizes[1:] if random.randrange(2) else [1, *sizes]
    begin, count = random.randrange(9), math.prod(sizes)
    made = NOISE[begin : begin + count].reshape(sizes).astype(random.choice(DTYPES))
    if made.size and made.dtype.kind in "fc" and random.randrange(12) == 0:
        made.flat[random.randrange(made.size)] = random.choice(SPECIAL)
    if made.ndim and random.randrange(8) == 0:
        made = made[..., ::-1] if random.randrange(2) else made.T
    return made


def latents(random):
    return rarely(random, array(random, 1, 4, 4, 4))


def context(random):
    return rarely(random, array(random, 1, tiny.TOKENS, 24))


def strengths(random):
    return rarely(random, STRENGTHS if random.randrange(2) else array(random, STEPS, 4))


def steps(random):
    return rarely(random, STEPS, lambda random: random.choice((junk(random), random.randrange(-1, 6))))


def schedule(random):
    return rarely(random, random.choice(("paper", "diffusers", "corrected")))


def layers(random):
    other = [random.choice((random.randrange(-1, 6), junk(random))) for _ in range(random.randrange(5))]
    return rarely(
        random, random.choice(((2, 3), (2, 3), (3,), ())), lambda random: random.choice((other, junk(random)))
    )


def features(random):
    def key(random):
        return random.choice((None, "a", -1, *NUMBERS))

    return {
        rarely(random, layer, key): rarely(random, array(random, STEPS, 16, 16))
        for layer in range(2, 2 + random.randrange(3))
    }


def inversion(random):
    changed = random.randrange(4)
    if changed == 0:
        return rarely(random, INVERSION | {random.choice(("query", "key", "value", "latents")): features(random)})
    if changed == 1:
        made = {"latents": rarely(random, array(random, STEPS + 1, 4, 4, 4))}
        return rarely(
            random, made | {kind: features(random) for kind in ("query", "key", "value") if random.randrange(4)}
        )
    return rarely(random, INVERSION)


def styles(random):
    return rarely(random, [inversion(random) for _ in range(random.choice((1, 1, 2, 3)))])


def weights(random, count):
    return rarely(random, [rarely(random, random.uniform(0.1, 10)) for _ in range(count)])


def guidance(random):
    return (
        rarely(random, random.choice((None, None, array(random, 1, tiny.TOKENS, 24)))),
        rarely(random, random.uniform(-2, 9)),
    )


def regions(random, count):
    if random.randrange(3):
        return rarely(random, None)
    made = {
        "bias": {layer: rarely(random, array(random, count, 16)) for layer in (2, 3) if random.randrange(4)},
        "cover": {layer: rarely(random, array(random, 16)) for layer in (2, 3) if random.randrange(2)},
        "key_bias": [
            {layer: rarely(random, array(random, 16)) for layer in (2, 3) if random.randrange(2)} for _ in range(count)
        ],
    }
    if random.randrange(8) == 0:
        made[random.choice(list(made))] = junk(random)
    return rarely(random, made)


def pixels(random):
    made = array(random, 8, 8, 3)
    if random.randrange(2) and made.dtype == np.float32:
        made = (made * 255).astype(np.uint8)
    return rarely(random, made)


# ---- entry points ----


def predict_noise(_):
    return (lambda r: (latents(r), rarely(r, r.randrange(1000)), context(r))), lambda a: MODEL.predict_noise(*a)


def encode(_):
    return (lambda r: rarely(r, array(r, 1, 8, 8, 3))), MODEL.encode


def decode(_):
    return (lambda r: (latents(r), rarely(r, False))), lambda a: (MODEL.decode(*a), MODEL.decode_float(a[0]))


def encode_tokens(_):
    def make(random):
        tokens = array(random, 2, 7)
        if random.randrange(4) and tokens.dtype == np.float32:
            tokens = (tokens * random.choice((40, 60)) - random.choice((0, 5))).astype(np.int32)
        return rarely(random, tokens)

    return make, MODEL.encode_tokens


def sizes(_):
    """The functions of numbers alone: scratch, vae_scratch, schedule."""

    def run(arguments):
        for function, given in (
            (MODEL.scratch, arguments), (MODEL.vae_scratch, arguments[:2]), (_core.schedule, (MODEL, *arguments[:2])),
            (_core.schedule, (MODEL, "paper", arguments[0])), (_core.timesteps, arguments[:1]),
        ):  # fmt: skip
            try:
                function(*given)
            except (TypeError, ValueError, OverflowError, MemoryError) as error:
                assert str(error)

    def number(random):
        value = rarely(random, random.choice((random.randrange(-1, 9) * 2, random.choice(NUMBERS), -1, None, 0.5, "8")))
        # Sizes between these would be measured, which takes seconds and primitives for maps of millions of pixels.
        return 8 if isinstance(value, int) and 1003 < value <= 1 << 31 else value

    return (lambda r: tuple(number(r) for _ in range(3))), run


def invert(_):
    def make(random):
        kept = [
            rarely(random, random.choice(("none", "query", "keys", "both"))) for _ in range(random.choice((1, 1, 1, 2)))
        ]
        dtype = rarely(random, random.choice(("float32", "float32", "bfloat16")))
        common = latents(random), context(random), steps(random), schedule(random), layers(random)
        return (*common, rarely(random, kept), dtype, None, None, *guidance(random))

    return make, lambda a: _core.invert(MODEL, *a)


def sampling(function):
    def make(random):
        chosen = styles(random)
        count = len(chosen) if isinstance(chosen, (list, tuple)) else 1
        common = (
            latents(random),
            context(random),
            steps(random),
            schedule(random),
            layers(random),
            inversion(random),
            chosen,
        )
        rest = weights(random, count), strengths(random), strengths(random), None, None, *guidance(random)
        return (*common, *rest), {
            "inject": rarely(random, random.choice(("qkv", "qkv", "kv", "q", "v", ""))),
            "regions": regions(random, count),
        }

    return make, lambda a: function(MODEL, *a[0], **a[1])


def sample(_):
    return sampling(_core.sample)


def inject_styles(_):
    return sampling(_core.inject_styles)


def transfer(_):
    def make(random):
        common = pixels(random), pixels(random), context(random), steps(random), schedule(random), layers(random)
        return (*common, strengths(random), strengths(random), bool(random.randrange(2)))

    return make, lambda a: _core.transfer(MODEL, *a)


def adain(_):
    return (lambda r: (latents(r), latents(r), rarely(r, r.random()))), lambda a: _core.adain(*a)


def model(_):
    """A good configuration and good weights, of which one entry is replaced or removed."""

    def make(random):
        configuration = {key: dict(part) if isinstance(part, dict) else part for key, part in CONFIG.items()}
        changed = dict(WEIGHTS)
        kind = random.randrange(4)
        if kind == 0:
            part = configuration[random.choice(("unet", "vae", "text"))]
            values = junk(random), random.randrange(41), [random.randrange(-1, 41) for _ in range(random.randrange(10))]
            part[random.choice(sorted(part))] = random.choice(values)
        elif kind == 1:
            configuration[random.choice(sorted(configuration))] = junk(random)
        elif kind == 2:
            changed[random.choice(sorted(changed))] = junk(random)
        else:
            name = random.choice(sorted(changed))
            values = (
                junk(random),
                [random.choice(NUMBERS) for _ in range(random.randrange(6))],
                random.randbytes(64),
                array(random, 4, 4),
            )
            changed[name] = changed[name] | {random.choice(("dtype", "shape", "data")): random.choice(values)}
        return configuration, changed

    return make, lambda a: _core.Model(*a)


ENTRIES = [predict_noise, encode, decode, encode_tokens, sizes, invert, sample, inject_styles, transfer, adain, model]

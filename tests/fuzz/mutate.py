"""Random changes of bytes and of JSON trees. `random` is a random.Random throughout."""

import copy
import json
import struct

BYTES = [0, 1, 0x7F, 0x80, 0xFF]
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    8,
    64,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**48,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
]
VALUES = [
    None,
    True,
    False,
    "",
    "a",
    "\0",
    "../a",
    "/etc/passwd",
    [],
    {},
    [[]],
    -1,
    0.5,
    -0.0,
    1e308,
    "x" * 300,
    *NUMBERS,
]


def change_bytes(random, content, words, others):
    """Changes some bytes of the content, mostly near one of its ends, where most formats have their structure.

    words are typical of such files; others are more files of the kind, of which a part may be spliced in
    """
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 9))):
        place = _place(random, len(data))
        kind = random.randrange(9)
        if kind == 0:
            data[place : place + 1] = bytes([random.choice(BYTES)])
        elif kind == 1:
            data[place : place + 1] = bytes([random.randrange(256)])
        elif kind == 2 and place < len(data):
            data[place] ^= 1 << random.randrange(8)
        elif kind == 3:
            form = random.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            number = random.choice(NUMBERS) % (1 << 8 * struct.calcsize(form))
            data[place : place + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 4:
            del data[place : place + random.randrange(1, 40)]
        elif kind == 5:
            data[place:place] = data[place : place + random.randrange(1, 40)]
        elif kind == 6:
            data[place:place] = random.choice(words)
        elif kind == 7:
            other = random.choice(others)
            begin = _place(random, len(other))
            data[place : place + random.choice((0, 8, 40))] = other[begin : begin + random.randrange(1, 200)]
        else:
            word = random.choice(words)
            data[place : place + len(word)] = word
    if random.randrange(20) == 0:
        del data[_place(random, len(data)) :]
    return bytes(data)


def _place(random, size):
    edge = min(size, int(2 ** random.uniform(0, 12)))
    return random.choice((edge, size - edge, random.randrange(size + 1)))


def change_tree(random, tree):
    """Replaces, removes, repeats or exchanges one to three nodes of a JSON tree, in place, and returns the tree."""
    for _ in range(random.choice((1, 1, 2, 3))):
        holder, key = _node(random, tree)
        if holder is None:
            return _value(random)
        kind = random.randrange(7)
        value = holder[key]
        if kind <= 1:
            holder[key] = _value(random)
        elif kind == 2:
            del holder[key]
        elif kind == 3:
            other, place = _node(random, tree)
            holder[key] = json.loads(json.dumps(other[place]))
        elif kind == 4:
            holder[key] = [value] if random.randrange(2) else {"a": value}
        elif kind == 5 and isinstance(value, (int, float)):
            holder[key] = random.choice((value + 1, value - 1, -value, value * 2, float(value), str(value)))
        elif isinstance(holder, list):
            holder.append(value)
        else:
            holder[random.choice((f"{key}0", key[:-1], random.choice(VALUES[3:8]), *list(holder)[:3]))] = value
    return tree


def _value(random):
    """A copy of one of VALUES, so that changes of one input are not in the next."""
    return copy.deepcopy(random.choice(VALUES))


def _node(random, tree):
    """(container, key or index) of a random node below the root; (None, None) if there is none."""
    holder = key = None
    while isinstance(tree, (dict, list)) and tree and (holder is None or random.randrange(3)):
        holder = tree
        key = random.choice(list(tree)) if isinstance(tree, dict) else random.randrange(len(tree))
        tree = tree[key]
    return holder, key

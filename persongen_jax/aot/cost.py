"""What a compiled TPU program reveals: cycles, collectives, kernels without a cost.

The text of the scheduled program (HLO) has the compiler's estimate of cycles for every instruction.
Their sum is one estimate of the program's time; ``optimal_seconds`` of its cost analysis is
another. Neither is a bound: the sum overlaps only what the compiler has fused into one instruction
or started ahead (copies, collectives), and the other ignores layouts.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = ")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = {
    key: re.compile(rf"\b{key}=%?([\w.\-]+)")
    for key in ("calls", "to_apply", "body", "condition", "true_computation", "false_computation")
}
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shape: str
    line: str

    @property
    def cycles(self) -> int | None:
        found = _CYCLES.search(self.line)
        return int(found.group(1)) if found else None

    def called(self, key: str) -> str | None:
        found = _CALLED[key].search(self.line)
        return found.group(1) if found else None

    @property
    def operands(self) -> list[str]:
        """Names in the brackets after the opcode."""
        inside = self.line.split(f" {self.opcode}(", 1)[-1].split(")")[0]
        return re.findall(r"%([\w.\-]+)", inside)

    @property
    def branches(self) -> list[str]:
        found = _BRANCHES.search(self.line)
        if found:
            return [name.strip(" %") for name in found.group(1).split(",")]
        pair = [self.called("true_computation"), self.called("false_computation")]
        return [name for name in pair if name]

    @property
    def op_name(self) -> str:
        """The origin in the Python program, in JAX's notation."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found.group(1) if found else ""


@dataclasses.dataclass
class Cost:
    """The cost of one run of the program on one chip.

    Attributes:
        cycles: the sum over all instructions; a loop's body counts once per iteration.
        unknown_loops: loops whose number of iterations the compiler does not say.
        kernels: target of custom calls without an estimate -> number of runs.
        collectives: kind -> (number of runs, bytes that one chip contributes).
        by_instruction: (instruction, total cycles), for a profile.
    """

    cycles: int = 0
    unknown_loops: int = 0
    kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    collectives: dict = dataclasses.field(default_factory=dict)
    by_instruction: list = dataclasses.field(default_factory=list)


def read_cost(text: str, unknown_trips: int = 1) -> Cost:
    """The cost of a compiled program's text (``compiled.as_text()``).

    ``unknown_trips`` is the number of iterations of loops for which the text does not give it. The
    most expensive branch of a conditional counts.
    """
    computations, entry = parse(text)
    return _walk(computations, entry, unknown_trips, {})


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(computation's name -> its instructions in order, the entry's name)."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif current is None:
            header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if header and not line.startswith("HloModule"):
                current = computations.setdefault(header.group(2), [])
                entry = header.group(2) if header.group(1) else entry
        elif found := _INSTRUCTION.match(line.strip()):
            rest = line.strip()[found.end() :]
            end = _shape_end(rest)
            opcode = rest[end:].strip().split("(")[0]
            current.append(Instruction(found.group(1), opcode, rest[:end], line))
    if entry is None:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY")
    return computations, entry


def _shape_end(text: str) -> int:
    """The end of a shape; a tuple of shapes has brackets, and so has a layout."""
    depth = 0
    for i, char in enumerate(text):
        depth += char in "([{"
        depth -= char in ")]}"
        if depth == 0 and char == " ":
            return i
    return len(text)


def shape_bytes(shape: str) -> list[int]:
    """Bytes of each array in a shape such as "(f32[4,8]{1,0}, bf16[])"."""
    sizes = []
    for dtype, dims in _SHAPE.findall(shape):
        bits = _BITS.get(dtype) or int((re.findall(r"\d+", dtype) or ["0"])[0])
        sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits // 8)
    return sizes


def _walk(computations, name, unknown_trips, seen) -> Cost:
    if name in seen:
        return seen[name]
    cost, channels = Cost(), set()
    for instruction in computations[name]:
        opcode = instruction.opcode
        if opcode == "while":
            trips = _trips(computations, instruction)
            cost.unknown_loops += trips is None
            trips = unknown_trips if trips is None else trips
            for key in ("body", "condition"):
                inner = _walk(computations, instruction.called(key), unknown_trips, seen)
                _add(cost, inner, trips)
        elif opcode == "conditional":
            ways = [_walk(computations, b, unknown_trips, seen) for b in instruction.branches]
            _add(cost, max(ways, key=lambda branch: branch.cycles), 1)
        elif opcode == "call":
            called = instruction.called("to_apply") or instruction.called("calls")
            _add(cost, _walk(computations, called, unknown_trips, seen), 1)
        else:
            _count(cost, instruction, computations, channels)
    seen[name] = cost
    return cost


def _trips(computations, instruction) -> int | None:
    """Iterations of a loop: as annotated, or until its counter, from 0, reaches a constant."""
    if found := _TRIPS.search(instruction.line):
        return int(found.group(1))
    condition = computations[instruction.called("condition")]
    limits = [i for i in condition if i.opcode == "constant" and i.shape[:5] in ("s32[]", "u32[]")]
    if len(limits) != 1 or condition[-1].opcode != "compare" or "=LT" not in condition[-1].line:
        return None
    step = _step(condition, computations[instruction.called("body")])
    limit = _constant(limits[0])
    return None if limit is None else math.ceil(limit / step)


def _step(condition, body) -> int:
    """The increment of the counter that a loop's condition compares; 1 if unknown."""
    tables = [{i.name: i for i in part} for part in (condition, body)]
    counter = tables[0].get(condition[-1].operands[0])
    if counter is None or counter.opcode != "get-tuple-element" or body[-1].opcode != "tuple":
        return 1
    index = re.search(r"\bindex=(\d+)", counter.line)
    if index is None:
        return 1
    place = index.group()

    def added(name):
        found = tables[1].get(name)
        if found is None or (found.opcode == "get-tuple-element" and place not in found.line):
            return None
        if found.opcode == "add":
            parts = [added(operand) for operand in found.operands]
            return None if None in parts else sum(parts)
        return {"get-tuple-element": 0, "constant": _constant(found)}.get(found.opcode)

    return added(body[-1].operands[int(place.removeprefix("index="))]) or 1


def _constant(instruction) -> int | None:
    found = re.search(r"\bconstant\((-?\d+)\)", instruction.line)
    return int(found.group(1)) if found else None


def _count(cost, instruction, computations, channels):
    """``channels``: of the collectives counted so far.

    A collective that overlaps several fusions appears in each of them, with the same channel.
    """
    cycles = instruction.cycles
    if cycles is not None:
        cost.cycles += cycles
        cost.by_instruction.append((instruction, cycles))
    elif instruction.opcode == "custom-call":
        cost.kernels[_TARGET.search(instruction.line).group(1)] += 1
    for inner in (instruction, *_fused(computations, instruction)):
        kind = inner.opcode.removesuffix("-start")
        channel = _CHANNEL.search(inner.line)
        if kind in COLLECTIVES and (channel is None or channel[1] not in channels):
            channels.update(channel.groups() if channel else ())
            count, size = cost.collectives.get(kind, (0, 0))
            cost.collectives[kind] = (count + 1, size + _contributed_bytes(kind, inner))


def _fused(computations, instruction):
    """The instructions inside a fusion or an asynchronous one, where collectives hide."""
    called = instruction.called("calls")
    for inner in computations.get(called, ()):
        yield inner
        yield from _fused(computations, inner)


def _contributed_bytes(kind, instruction) -> int:
    """Bytes that a chip contributes to a collective, as far as the result's shape shows.

    A gathered array counts whole, and so does a reduced one; a scattered one likewise, which is
    its part times the number of chips.
    """
    sizes = shape_bytes(instruction.shape)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # (given, received, ...): the larger one is the whole array.
        return max(sizes)
    size = sum(sizes)
    if kind == "reduce-scatter":
        size *= _group_size(instruction.line)
    return size


def _group_size(line: str) -> int:
    """Chips in one group of a collective.

    Written replica_groups={{0,1},{2,3}}, =[2,2]<=[4] or =mesh['a'=2,'b'=2] {'b'}.
    """
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found.group(2)))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(found.group(2))
    found = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(found.group(1).split(",")) if found else 1


def _add(cost, inner, times):
    cost.cycles += inner.cycles * times
    cost.unknown_loops += inner.unknown_loops
    for target, count in inner.kernels.items():
        cost.kernels[target] += count * times
    for kind, (count, size) in inner.collectives.items():
        before = cost.collectives.get(kind, (0, 0))
        cost.collectives[kind] = (before[0] + count * times, before[1] + size * times)
    cost.by_instruction += [(i, cycles * times) for i, cycles in inner.by_instruction]


def corrected_optimal(optimal: float, floor: float, kernels: int) -> float:
    """``optimal_seconds`` without the -1 that every custom call without a cost adds.

    It is unknown which of the ``kernels`` add it, so this uses the smallest number that brings the
    estimate to ``floor``, the FLOPs at the chip's peak, in seconds. That is unambiguous while the
    two are less than a second apart.
    """
    for calls in range(kernels + 1):
        if optimal + calls >= floor:
            return optimal + calls
    return optimal + kernels


def profile(
    cost: Cost, part: Callable[[Instruction], str], rows: int = 30
) -> list[tuple[str, int, int]]:
    """(group, number of instructions, cycles), largest first; ``part`` maps names to groups."""
    counts, cycles = collections.Counter(), collections.Counter()
    for instruction, spent in cost.by_instruction:
        group = part(instruction)
        counts[group] += 1
        cycles[group] += spent
    return [(group, counts[group], spent) for group, spent in cycles.most_common(rows)]

"""Times styleid beside PyTorch with diffusers and OpenVINO: python -m benchmarks [PART ...]

Parts: unet, vae, load, default (these four unless others are named), growth, transfer, levels. Every program runs in a
process of its own; their repeats take turns. Ratios are other / styleid of the fastest runs. Writes results.json and
results.md."""

import argparse
import json
import platform
import statistics
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import sd
from benchmarks.measure import run_section
from benchmarks.parts import PARTS, STEPS, USUAL
from benchmarks.workers import PROGRAMS
from styleid import _core


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    info = _core.info()
    facts = {"CPU": names[0] if names else platform.processor(), "cores": len(names), "instruction set": info["isa"]}
    for package in "styleid", "torch", "diffusers", "openvino":
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not there"
    return facts | {"oneDNN": info["onednn"], "Python": platform.python_version()}


def cell(answers, ours):
    """Fastest (median, slowest), peak memory, and how many times styleid's fastest."""
    if not answers:
        return "-"
    seconds = [answer["seconds"] for answer in answers]
    spread = f" ({statistics.median(seconds):.3f}, {max(seconds):.3f})" if len(seconds) > 1 else ""
    text = f"{min(seconds):.3f} s{spread}, {max(answer['megabytes'] for answer in answers)} MB"
    if not ours or ours is answers:
        return text
    return f"{text}: {min(seconds) / min(answer['seconds'] for answer in ours):.2f} x"


def table(section, dtype, rows):
    programs = [name for name in PROGRAMS if any(name in answers for _, answers in rows)]
    title = f"{section.title}, {dtype}, {section.threads} thread{'s' * (section.threads > 1)}"
    title += ", CPU time" * (section.clock == "process_time")
    lines = [f"| {title} | " + " | ".join(programs) + " |", "| --- |" + " --- |" * len(programs)]
    for row, answers in rows:
        cells = [cell(answers.get(name), answers.get("styleid")) for name in programs]
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="default: what the CPU has")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose label holds this text")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each task (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="of one thread: for a machine that is busy otherwise")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the part transfer (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="where the random model is kept (default: a temporary folder)")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/benchmarks"), help="default: %(default)s")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown part {min(unknown)}, expected {', '.join(PARTS)}")
    native = ["bfloat16"] if _core.info()["native_bfloat16"] else []
    report = {"machine": machine(), "sections": []}
    texts = [", ".join(f"{key} {value}" for key, value in report["machine"].items())]
    options.output.mkdir(parents=True, exist_ok=True)
    print(texts[0], flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary)
        sd.write_folder(folder)
        for part in options.parts or USUAL:
            for dtype in options.dtype or [*native, "float32"]:
                for section in PARTS[part](options.steps):
                    section.rows = [row for row in section.rows if options.only in row.label]
                    if not section.rows or dtype not in section.dtypes:
                        continue
                    if options.cpu_time:
                        section.threads, section.clock = 1, "process_time"
                    rows = run_section(section, dtype, folder, options.programs.split(","), options.repeats)
                    texts.append(table(section, dtype, rows))
                    print("\n" + texts[-1], flush=True)
                    report["sections"].append({
                        "part": part, "title": section.title, "dtype": dtype, "threads": section.threads,
                        "clock": section.clock,
                        "rows": [{"label": row.label, "runs": answers} for row, answers in rows],
                    })  # fmt: skip
                    (options.output / "results.md").write_text("\n\n".join(texts) + "\n")
                    (options.output / "results.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

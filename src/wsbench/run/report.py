"""What a run says: what it is before it starts, and its results at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wsbench.records import BatchNumbers, DataIdentity, MetricValue, RunRecord


def console() -> Console:
    """Standard output; in a file wide enough that lines do not break."""
    out = Console()
    return out if out.is_terminal else Console(width=120, highlight=False)


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def batch_line(batch: BatchNumbers) -> str:
    """The five numbers as text."""
    return (
        f"{batch.micro_batch} per device x {batch.accumulate} micro-steps x {batch.devices} device(s) = "
        f"{batch.effective_batch}; batch statistics over {batch.norm_batch}"
    )


def data_line(data: DataIdentity) -> str:
    """The dataset's name, and the number of samples and the list of each split."""
    return f"{data.name}: " + ", ".join(f"{s.count} {part} ({s.list})" for part, s in data.splits.items())


def classes_line(classes: Sequence[str]) -> str:
    """Their number and some of their names."""
    return f"{len(classes)}: {', '.join(classes[:6])}{' ...' if len(classes) > 6 else ''}"


def per_class(metrics: Mapping[str, Mapping[str, float]], most: int = 40) -> None:
    """Metrics of single classes, the worst first; of many classes the worst ones only."""
    for name, values in metrics.items():
        ranked = sorted(values.items(), key=lambda entry: entry[1])
        table = Table(title=f"{name} of {len(values)} classes" + (f", the {most} worst" if len(values) > most else ""))
        table.add_column("class")
        table.add_column(name, justify="right")
        for label, value in ranked[:most]:
            table.add_row(escape(label), f"{value:.2f}")
        console().print(table)


def banner(facts: Mapping[str, str], notes: Sequence[str] = ()) -> None:
    """Say what the run is."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, escape(value))
    for note in notes:
        table.add_row("note", escape(note))
    console().print(table)


def results(record: RunRecord, paper: Mapping[str, float], paper_title: str, paths: Sequence[Path]) -> None:
    """Say what came out, beside the paper's row where there is one."""
    table = Table(title=f"{record.task} / {record.recipe} / {record.norm}, seed {record.seed}")
    for column in ("metric", "last", "best", "samples", *([paper_title] if paper else [])):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in record.metrics.items():
        best = record.best.get(name)
        printed = [f"{paper[name]:.2f}" if name in paper else "-"] if paper else []
        table.add_row(name, f"{metric.value:.2f}", _best(best), str(metric.n_eval), *printed)
    out = console()
    out.print(table)
    if paper and record.overrides:
        out.print(f"not comparable with the paper: the recipe was changed in {', '.join(record.overrides)}")
    cost = record.cost
    out.print(
        f"{record.steps} steps, {cost.train_seconds:.0f} s of training, {cost.samples_per_second:.1f} samples/s, peak "
        f"memory {cost.peak_memory_mib:.0f} MiB"
    )
    if record.skipped_steps:
        out.print(
            f"{record.skipped_steps} of {record.steps} optimizer steps moved nothing: gradients overflowed in "
            f"{record.provenance.precision}, and GradScaler left them out; the schedule has counted them"
        )
    for path in paths:
        out.print(f"wrote {path}", soft_wrap=True)


def _best(best: MetricValue | None) -> str:
    return "-" if best is None else f"{best.value:.2f} @ {best.step}"

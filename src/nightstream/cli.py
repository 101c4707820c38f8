"""The command line: arguments and their help. What a command does is in `nightstream.commands`, imported when it runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="nightstream",
    help="Raw telescope images to alerts, on GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class DeviceName(StrEnum):
    """Where the pixels are worked on."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class ExecutorName(StrEnum):
    """What runs the workers."""

    RAY = "ray"
    LOCAL = "local"


Camera = Annotated[str, typer.Option("--camera", "-c", help="Name of a camera (see info), or a YAML file.")]
Raws = Annotated[list[Path], typer.Argument(help="Raw FITS files, or folders of them.", show_default=False)]
Detectors = Annotated[list[int], typer.Option("--detector", "-d", help="Only this detector; may be repeated.")]
Bands = Annotated[list[str], typer.Option("--band", "-b", help="Only this band; may be repeated.")]
Visits = Annotated[list[int], typer.Option("--visit", help="Only this visit; may be repeated.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with sections engine, scheduler and alerts.")]
Device = Annotated[
    DeviceName, typer.Option("--device", envvar="NIGHTSTREAM_DEVICE", help="auto: a GPU where one works, else the CPU.")
]
Calibrations = Annotated[Path | None, typer.Option("--calibrations", help="Store made by calibrate.", exists=True)]
Reference = Annotated[Path | None, typer.Option("--reference", help="Reference stars, CSV or HDF5.", exists=True)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")]
Product = Annotated[Path, typer.Argument(help="An HDF5 file of Nightstream.", exists=True, dir_okay=False)]


@app.callback(invoke_without_command=True)
def nightstream(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Raw telescope images to alerts, on GPUs."""
    if version:
        from nightstream import __version__

        typer.echo(f"nightstream {__version__}")
        raise typer.Exit()


@app.command()
def run(
    raws: Raws,
    camera: Camera,
    output: Output,
    calibrations: Calibrations = None,
    templates: Annotated[Path | None, typer.Option("--templates", help="Store made by template.", exists=True)] = None,
    reference: Reference = None,
    positions: Annotated[
        Path | None, typer.Option("--positions", help="Positions for forced photometry, CSV or HDF5.", exists=True)
    ] = None,
    detector: Detectors = [],  # noqa: B006
    band: Bands = [],  # noqa: B006
    visit: Visits = [],  # noqa: B006
    config: Config = None,
    device: Device = DeviceName.AUTO,
    executor: Annotated[
        ExecutorName | None, typer.Option("--executor", help="Ray actors (the default), or this process alone.")
    ] = None,
    actors: Annotated[int | None, typer.Option("--actors", help="Workers; 0 (the default): as many as run well.")] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option("--gpus-per-actor", help="May be a fraction; by default all cards are shared out.")
    ] = None,
    steps_per_sigma: Annotated[
        int | None, typer.Option("--steps-per-sigma", min=1, help="Round pixels to sigma over this (16 is good).")
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", help="File, or postgresql://...; by default prompt.duckdb in the output folder.")
    ] = None,
    alerts: Annotated[bool, typer.Option("--alerts/--no-alerts", help="Associate, store and send what was found.")] = True,
    ephemerides: Annotated[
        Path | None, typer.Option("--ephemerides", help="Predicted places of Solar System objects, CSV or HDF5.", exists=True)
    ] = None,
    filters: Annotated[Path | None, typer.Option("--filters", help="Folder of users' SQL filters.", exists=True)] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the workers' logs.")] = False,
) -> None:
    """Process raw visits into calibrated images, differences, sources (HDF5) and alerts (Avro)."""
    from nightstream.commands.run import RunOptions, run_command

    if database is not None and "://" not in database:
        database = str(Path(database).absolute())
    if device is DeviceName.CPU and gpus_per_actor is None:
        gpus_per_actor = 0.0
    scheduler = {
        "executor": executor and executor.value,
        "actors": actors,
        "num_gpus_per_actor": gpus_per_actor,
        "verbose": verbose or None,
    }
    run_command(
        RunOptions(
            raws=raws,
            camera=camera,
            output=output,
            calibrations=calibrations,
            templates=templates,
            reference=reference,
            positions=positions,
            detectors=detector,
            bands=band,
            visits=visit,
            config=config,
            device=device.value,
            scheduler=scheduler,
            alerts={"database": database, "ephemerides": ephemerides, "filters": filters},
            with_alerts=alerts,
            steps_per_sigma=steps_per_sigma,
        )
    )


@app.command()
def calibrate(
    raws: Raws,
    camera: Camera,
    output: Output,
    detector: Detectors = [],  # noqa: B006
    band: Annotated[str | None, typer.Option("--band", "-b", help="Band of the flats, where there are several.")] = None,
    config: Config = None,
) -> None:
    """Make bias, dark, flat and defects from raw calibration frames."""
    from nightstream.commands.calibrate import calibrate_command

    calibrate_command(raws, camera, output, detectors=detector, band=band, config=config)


@app.command()
def template(
    raws: Raws,
    camera: Camera,
    output: Output,
    calibrations: Calibrations = None,
    reference: Reference = None,
    detector: Detectors = [],  # noqa: B006
    band: Bands = [],  # noqa: B006
    visit: Visits = [],  # noqa: B006
    config: Config = None,
    device: Device = DeviceName.AUTO,
) -> None:
    """Coadd visits of one field into the template of each detector and band."""
    from nightstream.commands.template import TemplateOptions, template_command

    template_command(
        TemplateOptions(
            raws=raws,
            camera=camera,
            output=output,
            calibrations=calibrations,
            reference=reference,
            detectors=detector,
            bands=band,
            visits=visit,
            config=config,
            device=device.value,
        )
    )


@app.command()
def subtract(
    science: Annotated[Path, typer.Argument(help="FITS image.", exists=True, dir_okay=False, show_default=False)],
    template: Annotated[Path, typer.Argument(help="FITS image to subtract.", exists=True, dir_okay=False, show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="FITS file to write.")] = Path("difference.fits"),
    picture: Annotated[
        Path | None, typer.Option("--picture", "-p", help="PNG that says how good it is; by default next to the output.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with sections prepare, align, difference.")] = None,
    device: Device = DeviceName.AUTO,
    gain: Annotated[
        tuple[float, float], typer.Option(help="Electrons per unit, science and template; 0: header, else measured.")
    ] = (0.0, 0.0),
    read_noise: Annotated[tuple[float, float], typer.Option(help="Electrons, science and template; -1: header.")] = (-1.0, -1.0),
    saturation: Annotated[tuple[float, float], typer.Option(help="Science and template, their units; 0: header.")] = (0.0, 0.0),
    extension: Annotated[tuple[str, str], typer.Option(help="Name or number of the HDUs; '': first image.")] = ("", ""),
    science_mask: Annotated[Path | None, typer.Option(help="FITS image, nonzero where bad.", exists=True)] = None,
    template_mask: Annotated[Path | None, typer.Option(help="The same of the template.", exists=True)] = None,
    science_variance: Annotated[Path | None, typer.Option(help="FITS image of the variance.", exists=True)] = None,
    template_variance: Annotated[Path | None, typer.Option(help="The same of the template.", exists=True)] = None,
    science_weight: Annotated[Path | None, typer.Option(help="FITS image of the inverse variance.", exists=True)] = None,
    template_weight: Annotated[Path | None, typer.Option(help="The same of the template.", exists=True)] = None,
    align: Annotated[str | None, typer.Option(help="auto, none, wcs or stars.")] = None,
    method: Annotated[str | None, typer.Option(help="alard_lupton or zogy.")] = None,
    basis: Annotated[str | None, typer.Option(help="gaussian or delta: what the kernel is made of.")] = None,
    convolve: Annotated[str | None, typer.Option(help="auto, template or science.")] = None,
    decorrelate: Annotated[
        bool | None, typer.Option("--decorrelate/--no-decorrelate", help="White noise and a PSF of its own, or the science PSF.")
    ] = None,
    score: Annotated[bool | None, typer.Option("--score", help="Also the significance of a point source at every pixel.")] = None,
) -> None:
    """Subtract one reduced FITS image from another: aligned, or aligned here by WCS or stars."""
    from nightstream.commands.subtract import SubtractOptions, plane_options, subtract_command

    planes = (science_mask, science_variance, science_weight), (template_mask, template_variance, template_weight)
    subtract_command(
        SubtractOptions(
            science=science,
            template=template,
            output=out,
            picture=picture or out.with_suffix(".png"),
            config=config,
            device=device,
            settings={
                "": {"score": score},
                "align": {"mode": align},
                "difference": {"method": method, "kernel_basis": basis, "convolve": convolve, "decorrelate": decorrelate},
            },
            science_plane=plane_options(gain[0], read_noise[0], saturation[0], extension[0], *planes[0]),
            template_plane=plane_options(gain[1], read_noise[1], saturation[1], extension[1], *planes[1]),
        )
    )


@app.command()
def export(product: Product, output: Annotated[Path, typer.Argument(help="FITS file to write.")]) -> None:
    """Write an HDF5 product as FITS that ds9 and TOPCAT open."""
    from nightstream.commands.look import export_command

    export_command(product, output)


@app.command()
def show(
    product: Product,
    picture: Annotated[Path | None, typer.Argument(help="PNG to write; by default beside the product.")] = None,
    header: Annotated[bool, typer.Option("--header/--no-header", help="Print the header and summary.")] = True,
) -> None:
    """Draw a quick-look picture of a product and print what it is."""
    from nightstream.commands.look import show_command

    show_command(product, picture, header=header)


@app.command()
def precover(
    database: Annotated[str, typer.Option("--database", help="Prompt database: a DuckDB file, or postgresql://...")],
    products: Annotated[Path, typer.Option("--products", help="Folder that run wrote to.", exists=True, file_okay=False)],
    days: Annotated[float, typer.Option("--days", min=0, help="How long before its first source an object is measured.")] = 30.0,
) -> None:
    """Measure new DIAObjects on the stored images of the days before."""
    from nightstream.commands.precover import precover_command

    precover_command(database, products, days)


@app.command()
def plan(
    camera: Camera,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Cards; needs a record of one.", show_default=False)] = None,
    cores: Annotated[int | None, typer.Option("--cores", min=1, help="Cores, instead of cards.", show_default=False)] = None,
    cadence: Annotated[float, typer.Option("--cadence", min=0.001, help="Seconds between visits.")] = 37.0,
    budget: Annotated[float, typer.Option("--budget", min=0.001, help="Seconds from the last pixel to the last alert.")] = 60.0,
    alerts: Annotated[int, typer.Option("--alerts", min=0, help="Alerts of a visit.")] = 10_000,
    record: Annotated[
        Path | None, typer.Option("--record", help="Made by perf/stages.py. Default: perf/records/stages-<device>.json.")
    ] = None,
    publish_record: Annotated[
        Path | None, typer.Option("--publish-record", help="Made by perf/publish.py. Default: perf/records/publish-cpu.json.")
    ] = None,
) -> None:
    """Say whether cards or cores hold a camera's cadence and how late its alerts are, from benchmark records."""
    from nightstream.commands.plan import plan_command

    plan_command(camera, gpus, cores, cadence, budget, alerts, record, publish_record)


@app.command()
def info(device: Device = DeviceName.AUTO) -> None:
    """Print versions, devices and cameras. Fails where --device gpu asks for a card and none works."""
    from nightstream.commands.info import info_command

    info_command(device.value)


@app.command()
def simulate(
    output: Output,
    detectors: Annotated[int, typer.Option("--detectors", min=1, help="Number of detectors.")] = 2,
    template_visits: Annotated[int, typer.Option("--template-visits", min=0, help="Visits to build templates from.")] = 4,
    science_visits: Annotated[int, typer.Option("--science-visits", min=0, help="Visits to process.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same bits.")] = 1,
) -> None:
    """Simulate a small survey with known truth: raw frames, reference catalogue, truth tables."""
    from nightstream.commands.simulate import simulate_command

    simulate_command(output, detectors, template_visits, science_visits, seed)


@app.command()
def demo(output: Output = Path("demo")) -> None:
    """Simulate, calibrate, build templates and process a small survey; about four minutes."""
    from nightstream.commands.simulate import demo_command

    demo_command(output)


@app.command()
def alert(
    number: Annotated[int, typer.Argument(help="diaSourceId of the alert.", show_default=False)],
    database: Annotated[str, typer.Option("--database", help="File, or postgresql://...")] = "prompt.duckdb",
    spool: Annotated[
        Path | None, typer.Option("--spool", help="Folder of the alert files; by default beside the database, or what it says.")
    ] = None,
    alerts: Annotated[
        Path | None,
        typer.Option("--alerts", help="Look in this file of alerts, without a database.", exists=True, dir_okay=False),
    ] = None,
    of_object: Annotated[
        bool, typer.Option("--object", help="The number is a diaObjectId or ssObjectId: all alerts of the object.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for stamps (FITS) and a picture (PNG).")] = None,
    voevent: Annotated[bool, typer.Option("--voevent", help="As VOEvent XML, into the output folder or printed.")] = False,
) -> None:
    """Find an alert that was made: print it, write its stamps, draw it."""
    from nightstream.commands.alert import AlertOptions, alert_command

    alert_command(
        AlertOptions(
            number=number, database=database, spool=spool, alerts=alerts, of_object=of_object, output=output, voevent=voevent
        )
    )


@app.command(name="filter")
def check_filters(
    folder: Annotated[Path, typer.Argument(help="Folder of users' filters, <user>.sql.", show_default=False)],
    alerts: Annotated[
        Path | None, typer.Option("--alerts", help="Run them on this file of alerts.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Check users' SQL filters, and say what each would get."""
    from nightstream.commands.filter import filter_command

    filter_command(folder, alerts)


def main() -> None:
    """Entry point of the ``nightstream`` script."""
    app()

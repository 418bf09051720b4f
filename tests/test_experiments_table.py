"""Tables of rows that have seeds."""

from dataclasses import replace

from restorekit.experiments.table import Repeated, compared


def test_gains_are_over_the_means_and_deviations_are_of_the_sample():
    def figures(light, strong):
        return {
            "15": {"psnr": light, "ssim": 0.9},
            "50": {"psnr": strong, "ssim": 0.7 if strong is None else strong / 40},
        }

    lines = [
        Repeated("degraded", {0: figures(24.0, 14.0)}, seeded=False),
        Repeated("alone", {0: figures(30.0, 24.0)}, seeded=False),
        Repeated("longer", {0: figures(31.0, 25.0), 1: figures(31.0, 26.0)}),
        Repeated("ours", {0: figures(32.0, 26.0), 1: figures(31.0, 25.0), 2: {"15": {"psnr": 99}}}, 1234),
        Repeated("to come", {}),
    ]
    table = compared(lines, ["15", "50"], {"over alone": "alone", "over longer": "longer"})
    # 29 and 28 have the mean 28.5 and the deviation 1 / sqrt(2); longer has the mean 28.25.
    assert table.splitlines()[2:] == [
        "| degraded | 24.00 | 14.00 | 19.00 | 0.6250 |  |  |  |  |",
        "| alone | 30.00 | 24.00 | 27.00 | 0.7500 |  |  |  |  |",
        "| longer | 31.00 ± 0.00 | 25.50 ± 0.71 | 28.25 ± 0.35 | 0.7688 ± 0.0088 | +1.25 |  |  | 2 |",
        "| ours | 31.50 ± 0.71 | 25.50 ± 0.71 | 28.50 ± 0.71 | 0.7688 ± 0.0088 | +1.50 | +0.25 | 1,234 | 2 |",
        "| to come |  |  |  |  |  |  |  | 0 |",
    ]
    apart = compared([*lines[:3], replace(lines[3], unlike=["longer"])], ["15"], {"over longer": "longer"})
    assert apart.splitlines()[-1].endswith("| 0.9000 ± 0.0000 |  | 1,234 | 3 |")
    blind = Repeated("blind", {0: figures(31.98, 26.0), 1: figures(30.96, 25.0)})
    told = replace(lines[3], instead={0: figures(31.98, 26.0), 1: figures(31.0, 25.0)})
    told = replace(told, silent="blind")
    paired = compared([lines[1], told, blind], ["15", "50"], {}).splitlines()
    assert (
        paired[0]
        == "|  | 15 | 50 | average | SSIM | over silent | prior's mean instead | parameters added | seeds |"
    )
    # Seed by seed 0.01 and 0.02 are gained over the blind one, and 0.01 and nothing lost with the mean.
    assert paired[2].endswith("| 0.7500 |  |  |  |  |")
    assert paired[3].endswith("| +0.015 ± 0.007 | -0.005 ± 0.007 | 1,234 | 2 |")
    assert paired[4].endswith("|  |  |  | 2 |")
    single = compared(lines[:2], ["15"], {"over alone": "alone"}).splitlines()
    assert single[0] == "|  | 15 | SSIM | over alone | parameters added | seeds |"

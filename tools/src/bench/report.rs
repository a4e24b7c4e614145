//! What a bench has found out: as text, and as one HTML file that needs no other.

use std::fmt::Write as _;

use super::row::{Fp, Hints, Policy, Row, Shown};
use super::targets::{self, LINUX, LINUX_QEMU, Target};
use super::{Bench, Named, features};
use umbra_shared::sve::Layout;
use umbra_shared::vl::Vq;

/// The columns of the table.
const COLUMNS: [&str; 21] = [
    "name",
    "policy",
    "VM",
    "hints",
    "VL",
    "guest FP",
    "host FP",
    "CPUs",
    "VMs",
    "exits",
    "instructions",
    "floor",
    "ratio",
    "hyp",
    "host",
    "guest",
    "ISB",
    "DSB",
    "TLBI",
    "cache",
    "bytes moved",
];

fn cells(row: &Row) -> [String; 21] {
    let dash = || "-".to_owned();
    let text = |value: Option<&str>| value.map_or_else(dash, str::to_owned);
    let number = |value: Option<u64>| value.map_or_else(dash, |n| n.to_string());
    let traced = |of: &dyn Fn(&super::row::Traced) -> f64| {
        row.traced.as_ref().map_or_else(dash, |traced| Shown(of(traced)).to_string())
    };
    [
        row.name.clone(),
        text(row.policy.map(Policy::name)),
        text(row.vm.as_deref()),
        text(row.hints.map(Hints::name)),
        number(row.vl_bytes),
        text(row.guest_fp.map(Fp::name)),
        text(row.host_fp.map(Fp::name)),
        number(row.cpus),
        number(row.vms),
        Shown(row.exits).to_string(),
        Shown(row.instructions).to_string(),
        row.floor.map_or_else(dash, |n| n.to_string()),
        row.ratio().map_or_else(dash, |ratio| format!("{ratio:.2}")),
        traced(&|t| t.worlds[0]),
        traced(&|t| t.worlds[1]),
        traced(&|t| t.worlds[2]),
        traced(&|t| t.isb),
        traced(&|t| t.dsb),
        traced(&|t| t.tlbi),
        traced(&|t| t.cache),
        Shown(row.bytes).to_string(),
    ]
}

/// What is measured of vCPUs without SVE only: it is the same at every VL.
fn of_one_length(row: &Row) -> bool {
    matches!(
        row.name.as_str(),
        "irq_exit" | "exit_with_pauth" | "timer_tick" | "timer_tick_idle" | "interrupt" | "ipi"
    )
}

/// Rows that the screen shows unless all are asked for.
fn selected(row: &Row) -> bool {
    let default = match row.vm.as_deref() {
        Some("protected") => row.policy.is_none_or(|policy| policy == Policy::Scrub),
        _ => row.policy.is_none_or(|policy| policy == Policy::Lazy),
    };
    default
        && row.hints.is_none_or(|hints| hints == Hints::None)
        && (row.vl_bytes.is_none_or(|vl| vl == 64) || of_one_length(row))
        && row.host_fp != Some(Fp::Fpsimd)
}

/// A table with a blank between columns; columns in which nothing stands are left out.
fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let used: Vec<usize> =
        (0..headings.len()).filter(|&column| rows.iter().any(|row| row[column] != "-")).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let mut out = String::new();
    let mut line = |cell: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        for &column in &used {
            let (cell, width) = (cell(column), width(column));
            // Words to the left, numbers to the right.
            if column == 0 {
                let _ = write!(text, "{cell:<width$}");
            } else {
                let _ = write!(text, "  {cell:>width$}");
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&|column| headings[column].to_owned());
    line(&|column| "-".repeat(width(column)));
    for row in rows {
        line(&|column| row[column].clone());
    }
    out
}

fn targets_of(bench: &Bench) -> Vec<Target> {
    let machine = bench.growth.first().map(|run| features(&run.machine)).unwrap_or_default();
    targets::all(&bench.rows, &machine)
}

fn target_rows(bench: &Bench) -> Vec<Vec<String>> {
    targets_of(bench)
        .iter()
        .map(|target| {
            vec![
                target.name.clone(),
                format!("{:.0}", target.aim),
                Shown(target.measured).to_string(),
                if target.is_met() { "met" } else { "missed" }.to_owned(),
            ]
        })
        .collect()
}

const TARGET_COLUMNS: [&str; 4] = ["target", "aim", "measured", ""];
const GROWTH_COLUMNS: [&str; 9] = [
    "CPUs",
    "exit, 1 VM",
    "8 VMs",
    "64 VMs",
    "boot instructions",
    "hyp's RAM (KiB)",
    "pages/VM",
    "pages/vCPU",
    "tables/guest page",
];

/// RAM of the machines.
const RAM: u64 = 1 << 30;

fn growth_rows(bench: &Bench) -> Vec<Vec<String>> {
    let rows = bench.growth.iter().filter(|run| !run.rows.is_empty());
    rows.filter_map(|run| {
        let machine = Named(&run.machine);
        let number = |key: &str| machine.number(key).ok().flatten();
        let exit = |vms: u64| {
            let row = run.rows.iter().find(|row| row.vms == Some(vms));
            row.map_or_else(|| "-".to_owned(), |row| Shown(row.instructions).to_string())
        };
        let boot = number("boot_ticks")? as f64 * 1e9 / number("frequency")? as f64;
        let pages = Named(run.pages.as_ref()?);
        let page = |key: &str| pages.number(key).ok().flatten();
        let (tables, memory) = (page("tables_added")?, page("guest_memory")?);
        Some(vec![
            number("cpus")?.to_string(),
            exit(1),
            exit(8),
            exit(64),
            format!("{boot:.0}"),
            (RAM.saturating_sub(number("host_ram")?) >> 10).to_string(),
            page("per_vm")?.to_string(),
            page("per_vcpu")?.to_string(),
            format!("{tables}/{memory}"),
        ])
    })
    .collect()
}

fn image_rows(bench: &Bench) -> Vec<Vec<String>> {
    bench.image.iter().map(|(name, bytes)| vec![name.clone(), bytes.to_string()]).collect()
}

fn layout_rows() -> Vec<Vec<String>> {
    (1..=16)
        .filter_map(Vq::new)
        .filter(|vq| vq.quadwords().is_power_of_two())
        .map(|vq| {
            let layout = Layout::new(vq);
            let row = [vq.vl_bytes(), layout.image_bytes(), layout.pages()];
            row.iter().map(ToString::to_string).collect()
        })
        .collect()
}

const IMAGE_COLUMNS: [&str; 2] = ["hyp's image", "bytes"];
const LAYOUT_COLUMNS: [&str; 3] = ["VL (bytes)", "FP image (bytes)", "pages"];

/// Functions of a profile that are shown.
const PROFILE_LINES: usize = 12;

/// For the screen.
pub fn text(bench: &Bench, all: bool) -> String {
    let rows: Vec<_> = bench
        .rows
        .iter()
        .filter(|row| all || selected(row))
        .map(|row| cells(row).to_vec())
        .collect();
    let mut out = table(&COLUMNS, &rows);
    if rows.len() < bench.rows.len() {
        let _ = writeln!(out, "(of {} rows; --all shows them all)", bench.rows.len());
    }
    let growth = growth_rows(bench);
    if !growth.is_empty() {
        let _ = write!(out, "\n{}", table(&GROWTH_COLUMNS, &growth));
        let _ = write!(out, "\n{}", table(&IMAGE_COLUMNS, &image_rows(bench)));
        let _ = write!(out, "\n{}", table(&LAYOUT_COLUMNS, &layout_rows()));
    }
    if all || targets_of(bench).iter().any(|target| !target.is_met()) {
        for (key, functions) in &bench.profiles {
            let _ = writeln!(out, "\nhyp's instructions in {key}:");
            for (name, count) in functions.iter().take(PROFILE_LINES) {
                let _ = writeln!(out, "{:>8}  {name}", Shown(*count));
            }
        }
    }
    let _ = write!(out, "\n{}", table(&TARGET_COLUMNS, &target_rows(bench)));
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn html_table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<table><tr>");
    for heading in headings {
        let _ = write!(out, "<th>{}</th>", escaped(heading));
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{}</td>", escaped(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
    out
}

/// A line of a plot: at each vector length, a count.
struct Series {
    name: String,
    colour: &'static str,
    dashed: bool,
    points: Vec<(u64, f64)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 190.0;

/// Counts against vector lengths, which stand at equal distances: they are powers of two.
fn plot(title: &str, series: &[Series]) -> String {
    let mut lengths: Vec<u64> =
        series.iter().flat_map(|line| line.points.iter().map(|&(vl, _)| vl)).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let points = || series.iter().flat_map(|line| line.points.iter());
    let highest = points().map(|&(_, y)| y).fold(1.0, f64::max);
    let step = (highest / 5.0).log10().floor();
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|n| n * 10f64.powf(step))
        .into_iter()
        .find(|step| highest / step <= 6.0)
        .unwrap_or(highest);
    let top = (highest / step).ceil() * step;
    let x = |vl: u64| {
        let at = lengths.iter().position(|&l| l == vl).unwrap_or(0) as f64;
        LEFT + (at + 0.5) * (WIDTH - LEFT - RIGHT) / lengths.len().max(1) as f64
    };
    let y = |n: f64| HEIGHT - BOTTOM - n / top * (HEIGHT - BOTTOM - TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n\
         <title>{0}</title><text x=\"{LEFT}\" y=\"20\" class=\"title\">{0}</text>\n",
        escaped(title)
    );
    let mut level = 0.0;
    while level <= top + step / 2.0 {
        let at = y(level);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"grid\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{level:.0}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
        level += step;
    }
    for &vl in &lengths {
        let label = if vl == 0 { "no SVE".to_owned() } else { format!("{} bit", vl * 8) };
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            x(vl),
            HEIGHT - BOTTOM + 18.0
        );
    }
    for (number, line) in series.iter().enumerate() {
        let path: Vec<String> =
            line.points.iter().map(|&(vl, n)| format!("{:.1},{:.1}", x(vl), y(n))).collect();
        let dash = if line.dashed { " stroke-dasharray=\"6 4\"" } else { "" };
        let colour = line.colour;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            path.join(" ")
        );
        for &(vl, n) in line.points.iter().filter(|_| !line.dashed) {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}: {n:.1}</title></circle>",
                x(vl),
                y(n),
                escaped(&line.name)
            );
        }
        let (at, label) = (TOP + 18.0 * number as f64, WIDTH - RIGHT + 14.0);
        let _ = writeln!(
            out,
            "<line x1=\"{label}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{colour}\" \
             stroke-width=\"2\"{dash}/><text x=\"{}\" y=\"{}\">{}</text>",
            label + 22.0,
            label + 28.0,
            at + 4.0,
            escaped(&line.name)
        );
    }
    out.push_str("</svg>\n");
    out
}

const COLOURS: [(Policy, &str); 3] =
    [(Policy::Lazy, "#1b6ca8"), (Policy::Eager, "#c8553d"), (Policy::Scrub, "#588157")];

/// The exits of normal VMs by policy and vector length, with what they are to be compared with.
fn exits(bench: &Bench, guest: Fp, host: Fp) -> Vec<Series> {
    let rows = |policy: Policy| {
        bench.rows.iter().filter(move |row| {
            row.name == "exit_to_host"
                && row.vm.as_deref() == Some("normal")
                && row.hints == Some(Hints::None)
                && row.policy == Some(policy)
                && row.guest_fp == Some(guest)
                && row.host_fp == Some(host)
        })
    };
    let mut series = Vec::new();
    for (policy, colour) in COLOURS {
        let points = |of: &dyn Fn(&Row) -> Option<f64>| {
            rows(policy).filter_map(|row| Some((row.vl_bytes?, of(row)?))).collect::<Vec<_>>()
        };
        let (measured, floor) =
            (points(&|row| Some(row.instructions)), points(&|row| row.floor.map(f64::from)));
        for (name, dashed, points) in [
            (policy.name().to_owned(), false, measured),
            (format!("{} floor", policy.name()), true, floor),
        ] {
            if !points.is_empty() {
                series.push(Series { name, colour, dashed, points });
            }
        }
    }
    let reference = match guest {
        Fp::None => &LINUX[0],
        Fp::Fpsimd => &LINUX[1],
        Fp::Sve => &LINUX[2],
    };
    let lengths: Vec<u64> = rows(Policy::Lazy).filter_map(|row| row.vl_bytes).collect();
    for (name, colour, value) in
        [("Linux pKVM", "#222222", reference.pkvm), ("Linux KVM nVHE", "#999999", reference.kvm)]
    {
        if let Some((all, _)) = value.filter(|_| host == Fp::None) {
            let points = lengths.iter().map(|&vl| (vl, f64::from(all))).collect();
            series.push(Series { name: name.to_owned(), colour, dashed: true, points });
        }
    }
    series
}

/// Bytes that a turn moves, by policy.
fn bytes(bench: &Bench) -> Vec<Series> {
    let of = |policy: Policy| {
        bench.rows.iter().filter(move |row| {
            row.name == "exit_to_host"
                && row.vm.as_deref() == Some("normal")
                && row.hints == Some(Hints::None)
                && row.policy == Some(policy)
                && row.guest_fp == Some(Fp::Sve)
                && row.host_fp == Some(Fp::Sve)
        })
    };
    COLOURS
        .into_iter()
        .map(|(policy, colour)| Series {
            name: policy.name().to_owned(),
            colour,
            dashed: false,
            points: of(policy).filter_map(|row| Some((row.vl_bytes?, row.bytes))).collect(),
        })
        .filter(|series| !series.points.is_empty())
        .collect()
}

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1300px;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}\
th,td{padding:2px 9px;text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}\
svg text{font:12px system-ui,sans-serif;fill:#333}svg .title{font-weight:600;font-size:14px}.grid{stroke:#e4e4e4}\
.plots{display:flex;flex-wrap:wrap;gap:1em}";

/// One self-contained file.
pub fn html(bench: &Bench) -> String {
    let (major, minor) = bench.qemu;
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Umbra: what a world switch costs</title>\n\
         <style>{STYLE}</style>\n<h1>Umbra: what a world switch costs</h1>\n\
         <p>Executed instructions per turn on QEMU {major}.{minor}, <code>-cpu {} -smp 1 -icount \
         shift=0,sleep=off</code>, as the one who makes the turn counts them. The floor is the fewest \
         instructions that the architecture needs for the state that must move.</p>\n",
        escaped(&bench.cpu)
    );
    out.push_str("<h2>Targets</h2>\n");
    out.push_str(&html_table(&TARGET_COLUMNS, &target_rows(bench)));
    out.push_str("<h2>Exit to the host and back, by vector length</h2>\n");
    if bench.qemu != LINUX_QEMU {
        let _ = writeln!(
            out,
            "<p>The lines of Linux are for QEMU {}.{}, where there is more to switch: they don't \
             compare with these.</p>",
            LINUX_QEMU.0, LINUX_QEMU.1
        );
    }
    out.push_str("<div class=\"plots\">\n");
    for (title, guest, host) in [
        ("guest uses no FP", Fp::None, Fp::None),
        ("guest uses FPSIMD at each turn", Fp::Fpsimd, Fp::None),
        ("guest uses SVE at each turn", Fp::Sve, Fp::None),
        ("guest and host use SVE at each turn", Fp::Sve, Fp::Sve),
    ] {
        out.push_str(&plot(&format!("Instructions: {title}"), &exits(bench, guest, host)));
    }
    out.push_str(&plot("Bytes moved: guest and host use SVE at each turn", &bytes(bench)));
    out.push_str(
        "</div>\n<h2>Linux</h2>\n<p>Linux 7.2.13 on QEMU 10.0.2, in all (EL2's part).</p>\n",
    );
    let value = |value: Option<(u32, u32)>| {
        value.map_or_else(|| "-".to_owned(), |(all, el2)| format!("{all} ({el2})"))
    };
    let linux: Vec<_> = LINUX
        .iter()
        .map(|row| vec![row.name.to_owned(), value(row.kvm), value(row.pkvm), value(row.protected)])
        .collect();
    let headings = ["round trip", "KVM nVHE", "pKVM, normal VM", "pKVM, protected VM"];
    out.push_str(&html_table(&headings, &linux));
    let growth = growth_rows(bench);
    if !growth.is_empty() {
        out.push_str("<h2>As work grows</h2>\n");
        out.push_str(&html_table(&GROWTH_COLUMNS, &growth));
        out.push_str(&html_table(&IMAGE_COLUMNS, &image_rows(bench)));
        out.push_str(&html_table(&LAYOUT_COLUMNS, &layout_rows()));
    }
    out.push_str("<h2>Where hyp's instructions go</h2>\n");
    for (key, functions) in &bench.profiles {
        let _ = writeln!(out, "<h3>{}</h3>", escaped(key));
        let rows: Vec<_> = functions
            .iter()
            .take(PROFILE_LINES)
            .map(|(name, count)| vec![name.clone(), Shown(*count).to_string()])
            .collect();
        out.push_str(&html_table(&["function", "instructions"], &rows));
    }
    out.push_str("<h2>All measurements</h2>\n");
    let rows: Vec<_> = bench.rows.iter().map(|row| cells(row).to_vec()).collect();
    out.push_str(&html_table(&COLUMNS, &rows));
    out.push_str("</html>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench() -> Bench {
        let row = |vl: u64, instructions: f64| Row {
            name: "exit_to_host".to_owned(),
            policy: Some(Policy::Lazy),
            vm: Some("normal".to_owned()),
            hints: Some(Hints::None),
            vl_bytes: Some(vl),
            guest_fp: Some(Fp::Sve),
            host_fp: Some(Fp::None),
            instructions,
            floor: Some(400),
            ..Row::default()
        };
        Bench {
            qemu: (10, 0),
            cpu: "max".to_owned(),
            rows: vec![row(16, 690.0), row(64, 691.0)],
            growth: Vec::new(),
            profiles: vec![("exit_to_host".to_owned(), vec![("run::<u8>".to_owned(), 12.0)])],
            image: Vec::new(),
        }
    }

    #[test]
    fn the_screen_shows_a_selection() {
        let bench = bench();
        let short = text(&bench, false);
        assert!(short.contains("691") && !short.contains("690"), "{short}");
        assert!(short.contains("of 2 rows"), "{short}");
        assert!(!short.contains("CPUs"), "an empty column: {short}");
        assert!(text(&bench, true).contains("690"));
    }

    #[test]
    fn the_report_is_one_file_with_plots() {
        let html = html(&bench());
        assert!(html.contains("<svg") && html.contains("Linux pKVM"));
        assert!(html.contains("run::&lt;u8&gt;"));
        for outside in ["<script", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("<table>").count(), html.matches("</table>").count());
        assert_eq!(html.matches("<svg ").count(), html.matches("</svg>").count());
    }
}

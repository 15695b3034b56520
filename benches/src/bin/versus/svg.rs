//! The ratios as a plot: a group of bars for each figure, a line at 1. Equal results give equal text.

use std::fmt::{self, Write};

use crate::measure::Better;
use crate::results::{Results, Row};

const WIDTH: f64 = 930.0;
/// Where the bars begin; left of it are the labels.
const LEFT: f64 = 420.0;
/// Room for the number behind a bar.
const RIGHT: f64 = 60.0;
const TOP: f64 = 40.0;
const BAR: f64 = 12.0;
const GAP: f64 = 10.0;
/// Longer bars are cut; their numbers are not.
const LONGEST: f64 = 2.5;
/// By column, the base left out (Okabe and Ito: told apart by everyone).
const COLOURS: [&str; 4] = ["#0072b2", "#56b4e9", "#e69f00", "#999999"];

/// Draws what has a ratio.
pub(crate) fn plot(results: &Results) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = draw(&mut text, results);
    text
}

fn draw(out: &mut String, results: &Results) -> fmt::Result {
    let contenders: Vec<(usize, &str, &str)> = results
        .columns()
        .iter()
        .enumerate()
        .filter(|(column, _)| results.base() != Some(*column))
        .zip(COLOURS.iter().cycle())
        .map(|((column, name), colour)| (column, *name, *colour))
        .collect();
    let groups: Vec<(&Row, Vec<(f64, &str)>)> = results
        .rows()
        .iter()
        .map(|row| (row, bars(results, row, &contenders)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let height = groups.iter().fold(TOP + GAP, |y, (_, bars)| y + size(bars.len()) * BAR + GAP);

    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">"
    )?;
    writeln!(out, "<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>")?;
    let base = results.base().and_then(|base| results.columns().get(base)).unwrap_or(&"");
    writeln!(out, "<text x=\"10\" y=\"20\">ratio to {}</text>", escaped(base))?;
    for (index, (_, name, colour)) in contenders.iter().enumerate() {
        let x = LEFT + size(index) * 110.0;
        writeln!(out, "<rect x=\"{x}\" y=\"11\" width=\"10\" height=\"10\" fill=\"{colour}\"/>")?;
        writeln!(out, "<text x=\"{}\" y=\"20\">{}</text>", x + 15.0, escaped(name))?;
    }
    let mut y = TOP;
    for (row, bars) in &groups {
        y = group(out, y, row, bars)?;
    }
    let one = LEFT + length(1.0);
    writeln!(
        out,
        "<line x1=\"{one:.1}\" y1=\"{}\" x2=\"{one:.1}\" y2=\"{y}\" stroke=\"black\" stroke-dasharray=\"4 3\"/>",
        TOP - 8.0
    )?;
    writeln!(out, "</svg>")
}

fn bars<'a>(
    results: &Results,
    row: &Row,
    contenders: &[(usize, &str, &'a str)],
) -> Vec<(f64, &'a str)> {
    let ratio = |column| results.cell(row, column)?.ratio;
    contenders.iter().filter_map(|(column, _, colour)| Some((ratio(*column)?, *colour))).collect()
}

/// One figure; gives where the next one begins.
fn group(out: &mut String, top: f64, row: &Row, bars: &[(f64, &str)]) -> Result<f64, fmt::Error> {
    let middle = top + size(bars.len()) * BAR / 2.0 + 4.0;
    let better = match row.better {
        Better::Less => " (less is better)",
        Better::More => "",
    };
    let label = format!("{}: {}{better}", row.title, row.figure);
    let x = LEFT - 8.0;
    writeln!(out, "<text x=\"{x}\" y=\"{middle}\" text-anchor=\"end\">{}</text>", escaped(&label))?;
    let mut y = top;
    for (ratio, colour) in bars {
        let (long, thick) = (length(*ratio), BAR - 1.0);
        writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{long:.1}\" height=\"{thick}\" fill=\"{colour}\"/>"
        )?;
        let (x, baseline) = (LEFT + long + 4.0, y + BAR - 2.0);
        writeln!(out, "<text x=\"{x:.1}\" y=\"{baseline}\">{ratio:.2}</text>")?;
        y += BAR;
    }
    Ok(y + GAP)
}

fn length(ratio: f64) -> f64 {
    ratio.clamp(0.0, LONGEST) / LONGEST * (WIDTH - LEFT - RIGHT)
}

/// A number of things, to multiply sizes with.
fn size(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn every_ratio_but_the_bases_is_a_bar() {
        let plot = plot(&results());
        // The background, two keys, and tap and ovs of the first figure, tap of the second.
        assert_eq!(plot.matches("<rect").count(), 1 + 2 + 3, "{plot}");
        for text in [">0.90<", ">0.30<", ">0.50<", ">ratio to bridge<", "p50 (less is better)"] {
            assert!(plot.contains(text), "{text}: {plot}");
        }
        assert!(plot.starts_with("<svg ") && plot.ends_with("</svg>\n"));
    }

    #[test]
    fn equal_results_give_equal_text() {
        assert_eq!(plot(&results()), plot(&results()));
    }

    #[test]
    fn long_bars_stay_inside() {
        assert!((length(1.0) * LONGEST - (WIDTH - LEFT - RIGHT)).abs() < 1e-9);
        assert!((length(1e9) - (WIDTH - LEFT - RIGHT)).abs() < 1e-9);
        assert!(length(-1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn text_cannot_break_the_drawing() {
        assert_eq!(escaped("a<b & c>d"), "a&lt;b &amp; c&gt;d");
    }
}

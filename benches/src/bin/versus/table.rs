//! The results as text: tables that are Markdown too, so that documents can quote them, and JSON.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use crate::machine::Machine;
use crate::measure::Better;
use crate::results::{Cell, Results, Row};

/// The figures and their ratios to the base. Processor time has a table of its own.
pub(crate) fn tables(results: &Results) -> String {
    let is_cost = |row: &&Row| row.unit == "s/Gbit";
    let (costs, rates): (Vec<_>, Vec<_>) = results.rows().iter().partition(is_cost);
    [rates, costs]
        .iter()
        .filter(|rows| !rows.is_empty())
        .map(|rows| table(results, rows))
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn table(results: &Results, rows: &[&Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let head = ["measure", "figure"].into_iter().map(str::to_owned);
    let columns = results.columns().iter().enumerate();
    table.set_header(head.chain(columns.map(|(index, name)| {
        if results.base() == Some(index) { format!("{name} = 1") } else { (*name).to_owned() }
    })));
    for row in rows {
        let better = match row.better {
            Better::Less => ", less is better",
            Better::More => "",
        };
        let unit = row.unit;
        let cells = (0..results.columns().len()).map(|column| {
            let is_base = results.base() == Some(column);
            results.cell(row, column).map_or_else(|| "-".to_owned(), |cell| text(&cell, is_base))
        });
        let head = [row.title.clone(), format!("{}, {unit}{better}", row.figure)];
        table.add_row(head.into_iter().chain(cells));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// `12.3 (0.95)`: the median, and its ratio to the base.
fn text(cell: &Cell, is_base: bool) -> String {
    match cell.ratio {
        Some(ratio) if !is_base => format!("{} ({ratio:.2})", three_digits(cell.median)),
        _ => three_digits(cell.median),
    }
}

fn three_digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The same and every single run, for programs.
pub(crate) fn json(
    results: &Results,
    machine: &Machine,
    left_out: &[(&'static str, String)],
    pairs: usize,
    duration: Duration,
) -> Value {
    let figures = results.rows().iter().map(|row| {
        let cells: Map<String, Value> = results
            .columns()
            .iter()
            .enumerate()
            .filter_map(|(column, name)| {
                Some(((*name).to_owned(), json!(results.cell(row, column)?)))
            })
            .collect();
        json!({
            "measure": row.measure,
            "figure": row.figure,
            "cc": row.cc,
            "unit": row.unit,
            "better": row.better,
            "contenders": cells,
        })
    });
    let left_out = left_out.iter().map(|(name, note)| json!({"contender": name, "note": note}));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "machine": machine,
        "pairs": pairs,
        "seconds": duration.as_secs_f64(),
        "base": results.base().and_then(|base| results.columns().get(base)),
        "left_out": left_out.collect::<Vec<_>>(),
        "figures": figures.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn the_table_has_medians_and_ratios() {
        assert_eq!(
            tables(&results()),
            "\
| measure                      | figure                  |         tap | bridge = 1 |         ovs |
|------------------------------|-------------------------|-------------|------------|-------------|
| TCP, 1 stream, switched, bbr | rate, Gbit/s            | 10.0 (0.90) |       20.0 | 6.00 (0.30) |
| round trip, out through SNAT | p50, µs, less is better | 50.0 (0.50) |        100 |           - |"
        );
    }

    #[test]
    fn programs_get_every_run() {
        const QUICK: Duration = Duration::from_millis(300);
        let machine = Machine::new("6.1.0", "x\nmodel name\t: CPU 1\n", 2);
        let value = json(&results(), &machine, &[("veth", "not built".to_owned())], 3, QUICK);
        assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!((&value["pairs"], &value["seconds"]), (&json!(3), &json!(0.3)));
        assert_eq!(value["machine"], json!({"kernel": "6.1.0", "cpu": "CPU 1", "cpus": 2}));
        assert_eq!(value["base"], "bridge");
        assert_eq!(value["left_out"], json!([{"contender": "veth", "note": "not built"}]));
        let [tcp, trip] = value["figures"].as_array().unwrap().as_slice() else {
            panic!("{value}")
        };
        assert_eq!(
            tcp["contenders"]["tap"],
            json!({"median": 10.0, "ratio": 0.9, "runs": [10.0, 30.0, 9.0]})
        );
        assert_eq!((&tcp["measure"], &tcp["cc"]), (&json!("tcp1"), &json!("bbr")));
        assert_eq!((&trip["better"], &trip["cc"]), (&json!("less"), &Value::Null));
        assert_eq!(trip["contenders"].get("ovs"), None);
    }

    #[test]
    fn three_digits_are_enough() {
        let texts = [1234.5, 12.345, 1.2345, 0.12345].map(three_digits);
        assert_eq!(texts, ["1234", "12.3", "1.23", "0.123"]);
    }
}

//! What was measured, run by run, and what follows from it.

use serde::Serialize;

use crate::measure::{Better, Measure, Sample};

/// All figures of a run of the program.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Names of the contenders, in the order of the columns.
    columns: Vec<&'static str>,
    /// Which of them the others are compared with, if it takes part.
    base: Option<usize>,
    rows: Vec<Row>,
}

/// One figure of one measure.
#[derive(Debug)]
pub(crate) struct Row {
    pub measure: String,
    /// For people, with the congestion control.
    pub title: String,
    pub figure: &'static str,
    pub cc: Option<String>,
    pub unit: &'static str,
    pub better: Better,
    /// By column, then by round; a run that failed has no value.
    runs: Vec<Vec<Option<f64>>>,
}

/// What one contender achieved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Cell {
    /// The median of its runs.
    pub median: f64,
    /// The median, over the rounds, of what it had to what the base had in the same round.
    pub ratio: Option<f64>,
    pub runs: Vec<f64>,
}

impl Results {
    pub(crate) fn new(columns: Vec<&'static str>, base: &str) -> Self {
        let base = columns.iter().position(|name| *name == base);
        Self { columns, base, rows: Vec::new() }
    }

    pub(crate) fn columns(&self) -> &[&'static str] {
        &self.columns
    }

    pub(crate) const fn base(&self) -> Option<usize> {
        self.base
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Notes what a contender, by its column, achieved in a round.
    pub(crate) fn add(
        &mut self,
        measure: Measure,
        cc: Option<&str>,
        column: usize,
        round: usize,
        samples: &[Sample],
    ) {
        for sample in samples {
            let name = measure.name();
            let is_it = |row: &Row| {
                row.measure == name && row.figure == sample.figure && row.cc.as_deref() == cc
            };
            let index = self.rows.iter().position(is_it).unwrap_or_else(|| {
                self.rows.push(Row {
                    title: match cc {
                        Some(cc) => format!("{}, {cc}", measure.title()),
                        None => measure.title(),
                    },
                    measure: name.clone(),
                    figure: sample.figure,
                    cc: cc.map(str::to_owned),
                    unit: sample.unit,
                    better: sample.better,
                    runs: vec![Vec::new(); self.columns.len()],
                });
                self.rows.len() - 1
            });
            let runs = self.rows.get_mut(index).and_then(|row| row.runs.get_mut(column));
            if let Some(runs) = runs {
                runs.resize(runs.len().max(round + 1), None);
                if let Some(run) = runs.get_mut(round) {
                    *run = Some(sample.value);
                }
            }
        }
    }

    /// What a contender achieved in a row.
    pub(crate) fn cell(&self, row: &Row, column: usize) -> Option<Cell> {
        let rounds = row.runs.get(column)?;
        let runs: Vec<f64> = rounds.iter().flatten().copied().collect();
        let base = self.base.and_then(|base| row.runs.get(base));
        let ratios = base.into_iter().flat_map(|base| {
            rounds.iter().zip(base).filter_map(|pair| match pair {
                (Some(own), Some(base)) if *base > 0.0 => Some(own / base),
                _ => None,
            })
        });
        Some(Cell { median: median(runs.clone())?, ratio: median(ratios.collect()), runs })
    }

    /// Figures that cannot be: each measurement of something that happened is above zero.
    pub(crate) fn impossible(&self) -> Vec<String> {
        let mut found = Vec::new();
        for row in &self.rows {
            for (runs, column) in row.runs.iter().zip(&self.columns) {
                for value in
                    runs.iter().flatten().filter(|value| !(value.is_finite() && **value > 0.0))
                {
                    found.push(format!("{column}, {}, {}: {value}", row.title, row.figure));
                }
            }
        }
        found
    }
}

/// The middle value; of an even number, the mean of the two middle ones.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get(middle.checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measure::{Family, Way};

    fn sample(value: f64) -> Sample {
        Sample { figure: "rate", unit: "Gbit/s", better: Better::More, value }
    }

    /// Two contenders and the base; the last one was not measured in the second row.
    pub(crate) fn results() -> Results {
        let mut results = Results::new(vec!["tap", "bridge", "ovs"], "bridge");
        let one = Measure::Streams(Way::Switched, 1, Family::V4);
        let rounds = [[10.0, 20.0, 5.0], [30.0, 20.0, 6.0], [9.0, 10.0, 7.0]];
        for (round, values) in rounds.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                results.add(one, Some("bbr"), column, round, &[sample(*value)]);
            }
        }
        let trip = Sample { figure: "p50", unit: "µs", better: Better::Less, value: 50.0 };
        results.add(Measure::RoundTrip(Way::Up), None, 0, 0, &[trip]);
        results.add(Measure::RoundTrip(Way::Up), None, 1, 0, &[Sample { value: 100.0, ..trip }]);
        results
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![7.0]), Some(7.0));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let results = results();
        let [row, trip] = results.rows() else { panic!("{results:?}") };
        let tap = results.cell(row, 0).unwrap();
        // 10/20, 30/20, 9/10; not 10/20 as the medians have it.
        assert_eq!((tap.median, tap.ratio), (10.0, Some(0.9)));
        assert_eq!(tap.runs, [10.0, 30.0, 9.0]);
        assert_eq!(results.cell(row, 1).unwrap().ratio, Some(1.0));
        assert_eq!(results.cell(trip, 0).unwrap().ratio, Some(0.5));
        assert_eq!(results.cell(trip, 2), None);
    }

    #[test]
    fn a_round_that_one_lost_is_no_pair() {
        let mut results = Results::new(vec!["tap", "bridge"], "bridge");
        for (column, round, value) in
            [(0, 0, 1.0), (1, 0, 2.0), (0, 1, 9.0), (1, 2, 3.0), (0, 2, 6.0)]
        {
            results.add(Measure::Connections(4), None, column, round, &[sample(value)]);
        }
        let row = results.rows().first().unwrap();
        assert_eq!(results.cell(row, 0).unwrap().ratio, Some(1.25));
    }

    #[test]
    fn without_the_base_there_are_no_ratios() {
        let mut results = Results::new(vec!["tap"], "bridge");
        results.add(Measure::Connections(4), None, 0, 0, &[sample(5.0)]);
        let row = results.rows().first().unwrap();
        assert_eq!(results.cell(row, 0).unwrap().ratio, None);
    }

    #[test]
    fn figures_that_cannot_be_are_found() {
        let mut results = results();
        assert_eq!(results.impossible(), Vec::<String>::new());
        results.add(Measure::Connections(4), None, 0, 0, &[sample(0.0)]);
        results.add(Measure::Connections(4), None, 1, 0, &[sample(f64::NAN)]);
        results.add(Measure::Connections(4), None, 2, 0, &[sample(-1.0)]);
        assert_eq!(results.impossible().len(), 3);
    }
}

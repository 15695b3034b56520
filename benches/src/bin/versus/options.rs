//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::contender::Kind;
use crate::measure::{Measure, WARM_UP};

/// One short round, for a look whether everything works.
const QUICK_PAIRS: usize = 1;
const QUICK_DURATION: Duration = Duration::from_millis(300);
/// Linux `TCP_CA_NAME_MAX`.
const CC_NAME_MAX: usize = 16;

/// Measures vswitchd beside other switches, all in network namespaces of this machine.
#[derive(Debug, Parser)]
#[command(name = "versus", version)]
pub(crate) struct Options {
    /// Measure only these: tcp1, tcp4, tcp16 (within the network), up1… (out through SNAT), back1… (the
    /// same, data coming back), down1… (into a published port), tcp1-6, up1-6, down1-6 (over IPv6), udp,
    /// udp-up, rtt, rtt-up, conn, conn32, memory, memory-6
    #[arg(long, value_name = "MEASURE", value_delimiter = ',', value_parser = Measure::parse)]
    pub only: Vec<Measure>,

    /// Compare only these: tap, veth (vswitchd), bridge, bridge-nf (the kernel's), ovs; and only if
    /// named: tap-epoll (vswitchd without io_uring), bare (frames copied between two TAPs), bare-two (by two
    /// threads with a ring each), bare-blocking (by two threads that read and write)
    #[arg(long, value_name = "CONTENDER", value_delimiter = ',', value_parser = Kind::parse)]
    pub contenders: Vec<Kind>,

    /// Congestion control of the TCP measures, such as bbr,cubic; left out, the kernel's default
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = congestion_control)]
    pub cc: Vec<String>,

    /// Every figure is the median of so many runs, contenders in turns
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = pairs)]
    pairs: usize,

    /// Length of one run
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    seconds: Duration,

    /// Worker threads of vswitchd, for a look at one of them; left out, its own default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,

    /// One run of 300 ms each: whether everything works, not how fast it is
    #[arg(long)]
    pub quick: bool,

    /// Also write the figures, run by run, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Also draw the ratios
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl Options {
    /// Runs of each measure and contender.
    pub(crate) fn pairs(&self) -> usize {
        if self.quick { QUICK_PAIRS } else { self.pairs }
    }

    /// Length of a run, without its warm-up.
    pub(crate) fn duration(&self) -> Duration {
        if self.quick { QUICK_DURATION } else { self.seconds }
    }

    /// What is measured, in the order of the table.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        let chosen = |measure: &Measure| self.only.is_empty() || self.only.contains(measure);
        Measure::ALL.into_iter().filter(chosen).collect()
    }

    /// What a measure is repeated with; `None`: the kernel's default.
    pub(crate) fn congestion_controls(&self, measure: Measure) -> Vec<Option<&str>> {
        if measure.has_congestion_control() && !self.cc.is_empty() {
            self.cc.iter().map(|cc| Some(cc.as_str())).collect()
        } else {
            vec![None]
        }
    }

    /// Runs of all measures but memory, which has no length.
    pub(crate) fn runs(&self) -> usize {
        let measures =
            self.measures().into_iter().filter(|measure| !matches!(measure, Measure::Memory(_)));
        let kinds = self.kinds();
        let carry = |m: Measure| kinds.iter().filter(|kind| kind.carries(m)).count();
        measures.map(|m| self.congestion_controls(m).len() * self.pairs() * carry(m)).sum()
    }

    /// How long these take at least.
    pub(crate) fn least(&self) -> Duration {
        let runs = u32::try_from(self.runs()).unwrap_or(u32::MAX);
        (self.duration() + WARM_UP).saturating_mul(runs)
    }

    /// What is compared, in the order of the columns.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let chosen = |kind: &Kind| match self.contenders.as_slice() {
            [] => kind.is_default(),
            named => named.contains(kind),
        };
        Kind::ALL.into_iter().filter(chosen).collect()
    }
}

fn pairs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1000) => Ok(number),
        _ => Err("must be a number from 1 to 1000".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.1..=60.0).contains(&number) => Ok(Duration::from_secs_f64(number)),
        _ => Err("must be a number from 0.1 to 60".to_owned()),
    }
}

fn congestion_control(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !text.is_empty() && text.len() < CC_NAME_MAX && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("must be the name of a congestion control, such as bbr".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Family, Way};

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from(["versus"].iter().chain(arguments))
    }

    #[test]
    fn everything_is_measured_five_times_by_default() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.measures(), Measure::ALL);
        assert_eq!(options.kinds(), Kind::ALL[..5]);
        assert_eq!((options.pairs(), options.duration()), (5, Duration::from_secs(2)));
    }

    #[test]
    fn a_choice_keeps_the_order_of_the_table() {
        let options = parse(&["--only", "rtt,tcp4", "--contenders", "bridge,tap"]).unwrap();
        let names: Vec<String> = options.measures().iter().map(Measure::name).collect();
        assert_eq!(names, ["tcp4", "rtt"]);
        assert_eq!(options.kinds(), [Kind::Tap, Kind::Bridge]);
    }

    #[test]
    fn only_streams_are_repeated_with_each_congestion_control() {
        let options = parse(&["--cc", "bbr,cubic", "--only", "up4,udp"]).unwrap();
        let controls = |measure: &Measure| options.congestion_controls(*measure);
        let all: Vec<_> = options.measures().iter().map(controls).collect();
        assert_eq!(all, [vec![Some("bbr"), Some("cubic")], vec![None]]);
        let default = parse(&[]).unwrap();
        assert_eq!(default.congestion_controls(Measure::Streams(Way::Up, 1, Family::V4)), [None]);
    }

    #[test]
    fn quick_is_short_whatever_else_is_said() {
        let options = parse(&["--quick", "--pairs", "9", "--seconds", "60"]).unwrap();
        assert_eq!((options.pairs(), options.duration()), (QUICK_PAIRS, QUICK_DURATION));
    }

    #[test]
    fn the_time_that_it_takes_is_counted_from_what_is_asked_for() {
        let line = ["--cc", "bbr,cubic", "--only", "up4,udp,memory", "--contenders", "tap,bridge"];
        let options = parse(&[&line[..], &["--pairs", "3", "--seconds", "1"]].concat()).unwrap();
        // Two congestion controls of one measure and one of another, three times on two contenders.
        assert_eq!(options.runs(), (2 + 1) * 3 * 2);
        assert_eq!(options.least(), Duration::from_millis(18 * 1200));
        let only = parse(&["--only", "memory"]).unwrap();
        assert_eq!((only.runs(), only.least()), (0, Duration::ZERO));
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            ["--only", "tcp5"],
            ["--contenders", "hub"],
            ["--cc", "a b"],
            ["--cc", ""],
            ["--pairs", "0"],
            ["--seconds", "0"],
            ["--seconds", "NaN"],
            ["--workers", "0"],
        ];
        for arguments in bad {
            assert!(parse(&arguments).is_err(), "{arguments:?}");
        }
    }
}

//! What a benchmark has found, and the report that all of them make.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::cli::Failure;

/// The name of the file that holds a report for programs, and for the next run.
const JSON: &str = "report.json";
const MARKDOWN: &str = "report.md";

const HEAD: &str = "| | figure | unit | compared to | ratio | aim | met | physical limit | reached |\n\
                    | --- | ---: | --- | --- | ---: | --- | --- | --- | ---: |\n";

/// What was measured last by each benchmark.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// By the benchmark's name.
    sections: BTreeMap<String, Section>,
}

/// What one benchmark has found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Section {
    title: String,
    /// Where and when; filled in by the report.
    #[serde(flatten)]
    run: Option<Run>,
    /// The figures, in the order in which they are shown.
    pub figures: Vec<Figure>,
    charts: Vec<String>,
    notes: Vec<String>,
    /// What goes to standard output when everything is done.
    #[serde(skip)]
    pub data: Option<String>,
    /// Why the command is to fail once the section is in the report: what was measured may not count.
    #[serde(skip)]
    pub failure: Option<String>,
}

/// Where, when and on what a benchmark was run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// UTC, as RFC 3339.
    pub date: String,
    /// The commit of the sources, with `+` where they were changed.
    pub commit: String,
    /// Whether it was a short run.
    pub short: bool,
    /// The machine.
    pub machine: Machine,
}

/// One figure, and what it is compared to in the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    name: String,
    value: f64,
    unit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    compared: Option<Compared>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aim: Option<Aim>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

/// What a figure is compared to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Compared {
    to: String,
    value: f64,
    /// The figure divided by it.
    ratio: f64,
}

/// What the machine would allow, whatever the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Limit {
    of: String,
    value: f64,
    /// How near the figure comes to it: 1 is there.
    reached: f64,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Aim {
    AtLeast(f64),
    AtMost(f64),
    RatioAtLeast(f64),
    RatioAtMost(f64),
}

impl Figure {
    /// `value`, in `unit`.
    pub fn new(name: impl Into<String>, value: f64, unit: impl Into<String>) -> Self {
        Self { name: name.into(), value, unit: unit.into(), compared: None, limit: None, aim: None, met: None }
    }

    /// Compares it to a value of the same unit.
    pub fn against(mut self, to: impl Into<String>, value: f64) -> Self {
        self.compared = Some(Compared { to: to.into(), value, ratio: self.value / value });
        self
    }

    /// The machine allows no more (of a speed), or no less (of a cost), than a value of the same unit: what `of` takes alone,
    /// measured in the same run.
    pub fn limit(mut self, of: impl Into<String>, value: f64) -> Self {
        let reached = self.value.min(value) / self.value.max(value);
        self.limit = Some(Limit { of: of.into(), value, reached });
        self
    }

    /// It should be at least so much.
    pub fn at_least(self, least: f64) -> Self {
        let met = self.value >= least;
        Self { aim: Some(Aim::AtLeast(least)), met: Some(met), ..self }
    }

    /// It should be at most so much.
    pub fn at_most(self, most: f64) -> Self {
        let met = self.value <= most;
        Self { aim: Some(Aim::AtMost(most)), met: Some(met), ..self }
    }

    /// It should be at least so many times what it is compared to.
    pub fn ratio_at_least(self, least: f64) -> Self {
        let met = self.compared.as_ref().map(|compared| compared.ratio >= least);
        Self { aim: Some(Aim::RatioAtLeast(least)), met, ..self }
    }

    /// It should be at most so many times what it is compared to.
    pub fn ratio_at_most(self, most: f64) -> Self {
        let met = self.compared.as_ref().map(|compared| compared.ratio <= most);
        Self { aim: Some(Aim::RatioAtMost(most)), met, ..self }
    }
}

impl std::fmt::Display for Figure {
    /// As a line for people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}", self.name, number(self.value), self.unit)?;
        if let Some(Compared { to, value, ratio }) = &self.compared {
            write!(f, "; {to}: {}; ratio {}", number(*value), number(*ratio))?;
        }
        if let Some(aim) = self.aim {
            write!(f, "; aim {}", aim.text())?;
        }
        if let Some(Limit { of, value, reached }) = &self.limit {
            write!(f, "; limit, {of}: {}, at {}", number(*value), number(*reached))?;
        }
        match self.met {
            Some(false) => f.write_str(", missed"),
            _ => Ok(()),
        }
    }
}

impl Aim {
    fn text(self) -> String {
        match self {
            Self::AtLeast(value) => format!("at least {}", number(value)),
            Self::AtMost(value) => format!("at most {}", number(value)),
            Self::RatioAtLeast(value) => format!("ratio at least {}", number(value)),
            Self::RatioAtMost(value) => format!("ratio at most {}", number(value)),
        }
    }
}

impl Section {
    /// An empty section.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            run: None,
            figures: Vec::new(),
            charts: Vec::new(),
            notes: Vec::new(),
            data: None,
            failure: None,
        }
    }

    /// Adds a figure and tells it. One that is no number, or compared to nothing, is a note that it was not measured.
    pub fn tell(&mut self, figure: Figure) {
        if !figure.value.is_finite() || figure.compared.as_ref().is_some_and(|compared| !compared.ratio.is_finite()) {
            self.note(format!("Not measured: {}.", figure.name));
            return;
        }
        crate::cli::progress::say(figure.to_string());
        self.figures.push(figure);
    }

    /// Adds a sentence below the figures: what a figure means, or its physical limit.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds a chart, a file in the report's folder.
    pub fn chart(&mut self, file: impl Into<String>) {
        self.charts.push(file.into());
    }
}

impl Report {
    /// The report in `folder`, or an empty one.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join(JSON);
        match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|error| format!("{} is no report: {error}; remove it", path.display()).into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("cannot read {}: {error}", path.display()).into()),
        }
    }

    /// Puts a section in the place of the one that its benchmark made before.
    pub fn put(&mut self, name: &str, section: Section, run: Run) {
        self.sections.insert(name.to_owned(), Section { run: Some(run), ..section });
    }

    /// Writes the report into `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let write = |file: &str, text: String| {
            let path = folder.join(file);
            std::fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
        };
        write(JSON, serde_json::to_string_pretty(self)? + "\n")?;
        write(MARKDOWN, self.markdown())?;
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = "# Benchmarks\n\nEach figure stands beside what it is compared to in the same run. A physical limit is what the machine takes for the \
             bare work, measured beside it; reached is how near the figure comes to it, 1 being there.\n"
            .to_owned();
        for section in self.sections.values() {
            let _ = write!(text, "\n## {}\n\n", section.title);
            if let Some(Run { date, commit, short, machine }) = &section.run {
                let short = if *short { ", a short run" } else { "" };
                let _ = writeln!(text, "{date}, commit {commit}{short}. {machine}\n");
            }
            text.push_str(HEAD);
            for figure in &section.figures {
                let _ = writeln!(text, "{}", row(figure));
            }
            for note in &section.notes {
                let _ = write!(text, "\n{note}\n");
            }
            for chart in &section.charts {
                let _ = write!(text, "\n![{chart}]({chart})\n");
            }
        }
        text
    }
}

fn row(figure: &Figure) -> String {
    let Figure { name, value, unit, compared, limit, aim, met } = figure;
    let (to, ratio) = match compared {
        Some(Compared { to, value, ratio }) => (format!("{to}: {}", number(*value)), number(*ratio)),
        None => (String::new(), String::new()),
    };
    let aim = aim.map(Aim::text).unwrap_or_default();
    let met = match met {
        Some(true) => "yes",
        Some(false) => "no",
        None => "",
    };
    let (limit, reached) = match limit {
        Some(Limit { of, value, reached }) => (format!("{of}: {}", number(*value)), number(*reached)),
        None => (String::new(), String::new()),
    };
    format!("| {name} | {} | {unit} | {to} | {ratio} | {aim} | {met} | {limit} | {reached} |", number(*value))
}

/// Three digits that count, and no more zeros than people like to read.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1_000.0 => crate::cli::progress::grouped(value.round() as u64),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        large if large >= 0.1 || large == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_knows_whether_its_aim_is_met() {
        let met = |figure: Figure| figure.met;
        assert_eq!(met(Figure::new("a", 2.0, "s").at_most(3.0)), Some(true));
        assert_eq!(met(Figure::new("a", 2.0, "s").at_least(3.0)), Some(false));
        assert_eq!(met(Figure::new("a", 2.0, "s").against("b", 4.0).ratio_at_least(0.7)), Some(false));
        assert_eq!(met(Figure::new("a", 2.0, "s").against("b", 4.0).ratio_at_most(0.7)), Some(true));
        assert_eq!(met(Figure::new("a", 2.0, "s")), None);
    }

    #[test]
    fn what_was_not_measured_is_no_figure() {
        let mut section = Section::new("a");
        section.tell(Figure::new("b", f64::NAN, "s"));
        section.tell(Figure::new("c", 1.0, "s").against("d", 0.0));
        assert!(section.figures.is_empty());
        assert_eq!(section.notes, ["Not measured: b.", "Not measured: c."]);
    }

    #[test]
    fn a_section_takes_the_place_of_its_own_and_leaves_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let run = || Run { date: "now".into(), commit: "abc".into(), short: true, machine: Machine::here() };
        for (name, value) in [("a", 1.0), ("b", 2.0), ("a", 3.0)] {
            let mut report = Report::open(folder.path()).unwrap();
            let mut section = Section::new(format!("Section {name}"));
            section
                .figures
                .push(Figure::new("f", value, "s").against("g", 2.0).ratio_at_least(1.0).limit("the wire", 0.6));
            report.put(name, section, run());
            report.write(folder.path()).unwrap();
        }
        let report = Report::open(folder.path()).unwrap();
        let values: Vec<_> = report.sections.values().map(|section| section.figures[0].value).collect();
        assert_eq!(values, [3.0, 2.0]);
        let text = std::fs::read_to_string(folder.path().join(MARKDOWN)).unwrap();
        let row = "| f | 3.00 | s | g: 2.00 | 1.50 | ratio at least 1.00 | yes | the wire: 0.60 | 0.20 |";
        assert!(text.contains(row), "{text}");
        std::fs::write(folder.path().join(JSON), "{").unwrap();
        assert!(Report::open(folder.path()).unwrap_err().to_string().contains("is no report"));
    }
}

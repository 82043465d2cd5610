//! The live view of a running pipeline: a line per operator on a terminal, a log line now and then elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tickhouse::runtime::Metrics;
use tickhouse::runtime::metrics::{NodeSnapshot, Snapshot};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How often the terminal is redrawn.
const REDRAW: Duration = Duration::from_millis(500);
/// How often a line is logged where there is no terminal.
const LOG: Duration = Duration::from_secs(10);

/// All live lines of the process; log lines are printed above them.
static LINES: LazyLock<MultiProgress> = LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// A writer to stderr that does not tear the live view.
pub fn writer() -> impl Write {
    AboveLines(Vec::new())
}

/// Prints one line on stderr, above the live view.
pub fn say(line: impl AsRef<str>) {
    LINES.suspend(|| eprintln!("{}", line.as_ref()));
}

/// Gathers what one log event writes and prints it in one go.
struct AboveLines(Vec<u8>);

impl Write for AboveLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.0);
        LINES.suspend(|| io::stderr().write_all(&bytes))
    }
}

impl Drop for AboveLines {
    fn drop(&mut self) {
        // Nobody is left to tell that stderr is gone.
        let _ = self.flush();
    }
}

/// The view; it goes on until [`LiveView::finish`].
pub struct LiveView {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl LiveView {
    /// Shows `metrics` from now on.
    pub fn start(metrics: Arc<Metrics>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let shown = async move {
            // Rows on the same terminal would be drawn over.
            let has_rows =
                io::stdout().is_terminal() && metrics.snapshot().nodes.iter().any(|node| node.kind == "stdout_sink");
            if io::stderr().is_terminal() && !has_rows {
                draw(&metrics, stopped).await;
            } else {
                log(&metrics, stopped).await;
            }
        };
        #[allow(clippy::disallowed_methods, reason = "the view is no part of the dataflow")]
        let task = tokio::spawn(shown);
        Self { stop, task }
    }

    /// Draws the last state and leaves the terminal clean.
    pub async fn finish(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

async fn draw(metrics: &Metrics, mut stopped: oneshot::Receiver<()>) {
    let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = LINES.add(ProgressBar::new_spinner().with_style(style));
    let mut rates = Rates::default();
    loop {
        bar.set_message(table(&metrics.snapshot(), &mut rates));
        tokio::select! {
            () = tokio::time::sleep(REDRAW) => {}
            _ = &mut stopped => break,
        }
    }
    bar.finish_and_clear();
    say(table(&metrics.snapshot(), &mut rates));
}

async fn log(metrics: &Metrics, mut stopped: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOG) => {}
            _ = &mut stopped => return,
        }
        tracing::info!("{}", line(&metrics.snapshot()));
    }
}

/// The ends of the pipeline in one line: rows of the sources and the tables, and what is under way.
fn line(snapshot: &Snapshot) -> String {
    let named = snapshot.nodes.iter().filter(|node| !node.name.starts_with(node.kind));
    let mut parts: Vec<_> = named.map(|node| format!("{} {}", node.name, grouped(passed(node)))).collect();
    let in_flight: u64 = snapshot.nodes.iter().map(|node| node.total(|s| s.in_flight)).sum();
    let late: u64 = snapshot.nodes.iter().map(|node| node.total(|s| s.late_rows)).sum();
    parts.extend((in_flight > 0).then(|| format!("{} in flight", grouped(in_flight))));
    parts.extend((late > 0).then(|| format!("{} late", grouped(late))));
    format!("rows so far: {}", parts.join(", "))
}

/// Rows per second between two looks.
#[derive(Default)]
struct Rates {
    last: Option<(Instant, Vec<u64>)>,
}

impl Rates {
    /// Per node, the rows that passed since the last call, per second.
    fn next(&mut self, snapshot: &Snapshot) -> Vec<f64> {
        let rows: Vec<u64> = snapshot.nodes.iter().map(passed).collect();
        let now = Instant::now();
        let rates = match &self.last {
            Some((then, before)) => {
                let seconds = now.duration_since(*then).as_secs_f64().max(1e-3);
                rows.iter().zip(before).map(|(now, before)| now.saturating_sub(*before) as f64 / seconds).collect()
            }
            None => vec![0.0; rows.len()],
        };
        self.last = Some((now, rows));
        rates
    }
}

/// What counts as a node's throughput: what it takes in, or for a source what it sends.
fn passed(node: &NodeSnapshot) -> u64 {
    match node.total(|s| s.rows_in) {
        0 => node.total(|s| s.rows_out),
        rows_in => rows_in,
    }
}

fn table(snapshot: &Snapshot, rates: &mut Rates) -> String {
    let rates = rates.next(snapshot);
    let width = snapshot.nodes.iter().map(|n| n.name.len()).max().unwrap_or(0).max(8);
    let mut out = String::new();
    let _ = write!(
        out,
        "{:width$} {:>12} {:>12} {:>9} {:>9} {:>9}  last insert",
        "operator", "rows in", "rows out", "rows/s", "lag", "in flight"
    );
    for (node, rate) in snapshot.nodes.iter().zip(rates) {
        let lag = node.watermark_lag().map_or_else(|| "-".to_owned(), |lag| format!("{:.1} s", lag.as_secs_f64()));
        let last = node.last_delivery().map(|at| snapshot.time.since(at));
        let last = last.map_or_else(String::new, |ago| format!("{:.1} s ago", ago.as_secs_f64()));
        let _ = write!(
            out,
            "\n{:width$} {:>12} {:>12} {:>9} {:>9} {:>9}  {last}",
            node.name,
            grouped(node.total(|s| s.rows_in)),
            grouped(node.total(|s| s.rows_out)),
            grouped(rate.round() as u64),
            lag,
            grouped(node.total(|s| s.in_flight)),
        );
    }
    if let Some(epoch) = snapshot.last_epoch {
        let _ = write!(out, "\nepoch {epoch} took {} ms", snapshot.last_epoch_duration.as_millis());
    }
    out
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}

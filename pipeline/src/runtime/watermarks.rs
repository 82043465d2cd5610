//! Many senders' watermarks made into one.

use super::{Time, Watermark};

/// What is known of one sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing said so far: holds everything back.
    Unknown,
    /// No row before this follows.
    At(Time),
    /// Holds nobody back.
    Idle,
    /// Has ended, or will send no more rows with an event time.
    Ended,
}

/// Merges the watermarks of a subtask's senders: the least of those that are not idle.
#[derive(Debug)]
pub struct WatermarkMerge {
    senders: Vec<Progress>,
    /// The latest moment that was passed on.
    reached: Time,
    /// The last watermark that was passed on.
    last: Option<Watermark>,
}

impl WatermarkMerge {
    /// Of `senders` senders that have said nothing yet.
    pub fn new(senders: usize) -> Self {
        Self { senders: vec![Progress::Unknown; senders], reached: Time::MIN, last: None }
    }

    /// Sender `index` has sent `watermark`; returns the merged watermark if it has moved by that.
    pub fn update(&mut self, index: usize, watermark: Watermark) -> Option<Watermark> {
        self.set(
            index,
            match watermark {
                Watermark::At(Time::MAX) => Progress::Ended,
                Watermark::At(time) => Progress::At(time),
                Watermark::Idle => Progress::Idle,
            },
        )
    }

    /// Sender `index` has ended; returns the merged watermark if it has moved by that.
    pub fn end(&mut self, index: usize) -> Option<Watermark> {
        self.set(index, Progress::Ended)
    }

    fn set(&mut self, index: usize, progress: Progress) -> Option<Watermark> {
        *self.senders.get_mut(index)? = progress;
        let merged = self.merged()?;
        if self.last == Some(merged) {
            return None;
        }
        if let Watermark::At(time) = merged {
            self.reached = time;
        }
        self.last = Some(merged);
        Some(merged)
    }

    /// The watermark of all senders together. Never goes back: a sender that returns from being idle with an older watermark
    /// holds the rest where they are until it has caught up.
    fn merged(&self) -> Option<Watermark> {
        if self.senders.iter().all(|sender| *sender == Progress::Ended) {
            return Some(Watermark::At(Time::MAX));
        }
        let mut least: Option<Time> = None;
        for sender in &self.senders {
            match *sender {
                Progress::Unknown => return None,
                Progress::At(time) => least = Some(least.map_or(time, |least| least.min(time))),
                // An ended sender is Time::MAX, which is never the least; but an idle one may come back, so that ended and
                // idle senders together are idle, not ended.
                Progress::Idle | Progress::Ended => {}
            }
        }
        Some(least.map_or(Watermark::Idle, |least| Watermark::At(least.max(self.reached))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: i64) -> Watermark {
        Watermark::At(Time(time))
    }

    #[test]
    fn the_slowest_sender_decides() {
        let mut merge = WatermarkMerge::new(2);
        assert_eq!(merge.update(0, at(10)), None, "nothing is known of the other");
        assert_eq!(merge.update(1, at(5)), Some(at(5)));
        assert_eq!(merge.update(0, at(20)), None, "the least has not moved");
        assert_eq!(merge.update(1, at(12)), Some(at(12)));
        assert_eq!(merge.update(1, at(30)), Some(at(20)));
    }

    #[test]
    fn an_idle_sender_holds_nobody_back() {
        let mut merge = WatermarkMerge::new(2);
        assert_eq!(merge.update(0, at(10)), None);
        assert_eq!(merge.update(1, Watermark::Idle), Some(at(10)));
        assert_eq!(merge.update(0, at(11)), Some(at(11)));
    }

    #[test]
    fn all_idle_is_idle_and_ends_with_the_first_word() {
        let mut merge = WatermarkMerge::new(2);
        merge.update(0, at(10));
        merge.update(1, at(10));
        assert_eq!(merge.update(0, Watermark::Idle), None);
        assert_eq!(merge.update(1, Watermark::Idle), Some(Watermark::Idle));
        assert_eq!(merge.update(1, at(10)), Some(at(10)), "the reader must learn that it has to wait again");
    }

    #[test]
    fn time_never_goes_back() {
        let mut merge = WatermarkMerge::new(2);
        merge.update(0, at(100));
        assert_eq!(merge.update(1, Watermark::Idle), Some(at(100)));
        assert_eq!(merge.update(1, at(40)), None, "older than what was promised");
        assert_eq!(merge.update(0, at(200)), None, "held by the one that came back");
        assert_eq!(merge.update(1, at(150)), Some(at(150)));
    }

    #[test]
    fn an_ended_sender_counts_as_the_end_of_time() {
        let mut merge = WatermarkMerge::new(2);
        assert_eq!(merge.end(0), None);
        assert_eq!(merge.update(1, at(7)), Some(at(7)));
        assert_eq!(merge.update(1, at(Time::MAX.0)), Some(Watermark::At(Time::MAX)));
        assert_eq!(merge.end(1), None, "said already");
    }

    #[test]
    fn an_idle_sender_beside_an_ended_one_is_not_the_end() {
        let mut merge = WatermarkMerge::new(2);
        merge.update(0, at(5));
        merge.update(1, Watermark::Idle);
        assert_eq!(merge.end(0), Some(Watermark::Idle));
        assert_eq!(merge.end(1), Some(Watermark::At(Time::MAX)));
    }
}

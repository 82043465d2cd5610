//! The latest event time of each group.

use arrow::array::TimestampNanosecondArray;

/// The latest event time of the rows of numbered groups.
#[derive(Debug, Default)]
pub(super) struct LatestTimes(Vec<i64>);

impl LatestTimes {
    /// Adds rows of the groups with the numbers `groups`, of which there are `count`, at `times`.
    pub(super) fn add(&mut self, groups: &[usize], count: usize, times: &[i64]) {
        self.0.resize(count, i64::MIN);
        for (group, time) in groups.iter().zip(times) {
            if let Some(latest) = self.0.get_mut(*group) {
                *latest = (*latest).max(*time);
            }
        }
    }

    /// One time per group; nothing is left.
    pub(super) fn take(&mut self) -> TimestampNanosecondArray {
        TimestampNanosecondArray::from(std::mem::take(&mut self.0))
    }
}

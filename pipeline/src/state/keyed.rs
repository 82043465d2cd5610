//! A table of one row per key, as a log of Arrow batches.
//!
//! Rows are never changed in place: a new version of a row goes into a new segment and the old one becomes garbage. What
//! was written since some moment is therefore what stands in the segments since then, which is what a checkpoint of
//! changes has to write; and columns of every Arrow type work alike. An index finds the segment and row of a key. Segments
//! that are mostly garbage, or too small, are written again as few, full ones.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, TimestampNanosecondArray};
use arrow::compute::{interleave, take};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::error::{DataFusionError, Result};

use super::{KeyIndex, Part};
use crate::runtime::Time;

/// The rows of a full segment.
const SEGMENT_ROWS: usize = 65_536;

/// How many segments less than half full may stand before they are written into one.
const SMALL_SEGMENTS: usize = 16;

/// One row per key: key columns, value columns, and when the row was last touched.
pub struct KeyedTable {
    keys: Vec<FieldRef>,
    /// Keys, values, time of last touch.
    schema: SchemaRef,
    index: KeyIndex,
    /// Where the row of each key number is.
    places: Vec<Option<Place>>,
    /// Slots of dropped segments are used again.
    segments: Vec<Option<Segment>>,
    live: usize,
    segment_rows: usize,
    unsaved: Unsaved,
}

/// The key numbers whose rows were written since the last snapshot.
#[derive(Debug, Default)]
struct Unsaved {
    numbers: Vec<u32>,
    /// By key number.
    is_noted: Vec<bool>,
}

impl Unsaved {
    fn note(&mut self, numbers: &[u32]) {
        for number in numbers {
            let at = *number as usize;
            if at >= self.is_noted.len() {
                self.is_noted.resize(at + 1, false);
            }
            if let Some(noted) = self.is_noted.get_mut(at).filter(|noted| !**noted) {
                *noted = true;
                self.numbers.push(*number);
            }
        }
    }

    fn forget(&mut self, numbers: &[u32]) {
        for number in numbers {
            if let Some(noted) = self.is_noted.get_mut(*number as usize) {
                *noted = false;
            }
        }
    }

    /// The numbers that were noted and not forgotten since; none are left.
    fn take(&mut self) -> Vec<u32> {
        let mut numbers = std::mem::take(&mut self.numbers);
        numbers.retain(|number| self.contains(*number));
        self.is_noted.clear();
        numbers
    }

    fn contains(&self, number: u32) -> bool {
        self.is_noted.get(number as usize).copied().unwrap_or(false)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    segment: u32,
    row: u32,
}

struct Segment {
    batch: RecordBatch,
    /// The key number of each row. The row is live when the key's place is this row, else it is garbage.
    numbers: Vec<u32>,
    live: usize,
    touched: TimestampNanosecondArray,
    /// No row was touched before this.
    oldest: i64,
    /// Whether all of its rows were written since the last snapshot.
    is_unsaved: bool,
}

/// The rows that a table has of the keys that were asked for.
#[derive(Debug)]
pub struct Stored {
    /// The positions, among the keys asked for, of those that have a row; ascending.
    pub positions: Vec<usize>,
    /// The value columns of these rows.
    pub values: Vec<ArrayRef>,
}

impl KeyedTable {
    /// An empty table with these key and value columns. Without key columns it has at most one row.
    pub fn try_new(keys: Vec<FieldRef>, values: &[FieldRef]) -> Result<Self> {
        let touched = Field::new("_touched", DataType::Timestamp(TimeUnit::Nanosecond, None), false);
        let fields = keys.iter().chain(values).cloned().chain([Arc::new(touched)]);
        Ok(Self {
            schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            index: KeyIndex::try_new(&keys)?,
            keys,
            places: Vec::new(),
            segments: Vec::new(),
            live: 0,
            segment_rows: SEGMENT_ROWS,
            unsaved: Unsaved::default(),
        })
    }

    /// How many columns a key has: the first of those that are saved.
    pub fn key_columns(&self) -> usize {
        self.keys.len()
    }

    /// How many keys have a row.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether no key has a row.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Reads the rows of `keys`, lets `merge` make the new values of all of `keys` from them, and writes those.
    ///
    /// The keys must be distinct; `touched` has their times, not null: a row's time is the latest that its key was given.
    /// `merge` returns the value columns, in the order
    /// of `keys`. When it fails nothing is written.
    pub fn update<E: From<DataFusionError>>(
        &mut self,
        keys: &[ArrayRef],
        touched: &TimestampNanosecondArray,
        merge: impl FnOnce(Stored) -> std::result::Result<Vec<ArrayRef>, E>,
    ) -> std::result::Result<(), E> {
        let numbers = self.number(keys, touched.len())?;
        let stored = self.read(&numbers)?;
        let touched = self.latest(touched, &numbers);
        let values = merge(stored)?;
        let columns = keys.iter().chain(&values).map(Arc::clone).chain([Arc::new(touched) as ArrayRef]);
        let columns = columns.map(own).collect::<Result<Vec<_>>>()?;
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(DataFusionError::from)?;
        self.unsaved.note(&numbers);
        self.append(batch, numbers, true)?;
        self.compact()?;
        Ok(())
    }

    /// The rows for a snapshot: those written since the last call of this, each key's once, or all. Keys, values, time of last
    /// touch. Rows that have expired are not among them: whoever restores expires them again.
    pub fn save(&mut self, part: Part) -> Result<Vec<RecordBatch>> {
        // A segment without garbage is handed over as it is: nothing is copied where all keys change all the time.
        let (mut batches, mut others) = (Vec::new(), Vec::new());
        for (slot, segment) in self.segments.iter_mut().enumerate() {
            let Some(segment) = segment else { continue };
            let is_unsaved = std::mem::take(&mut segment.is_unsaved);
            if segment.live == segment.batch.num_rows() && (is_unsaved || part == Part::Everything) {
                batches.push(segment.batch.clone());
                self.unsaved.forget(&segment.numbers);
            } else {
                others.push(slot);
            }
        }
        let unsaved = self.unsaved.take();
        let places = match part {
            Part::Changes => unsaved.iter().filter_map(|number| self.places.get(*number as usize).copied()?).collect(),
            Part::Everything => self.live_rows(&others).1,
        };
        batches.extend(self.copy(&places)?);
        Ok(batches)
    }

    /// Takes back rows that [`KeyedTable::save`] gave, in their order: the last row of a key stands. The table was empty.
    ///
    /// # Errors
    /// Rows of other columns.
    pub fn restore(&mut self, batches: Vec<RecordBatch>) -> Result<()> {
        for batch in batches {
            // Names and nullability may differ between releases of a function; types decide whether the rows can be used.
            let types = |schema: &Schema| schema.fields().iter().map(|f| f.data_type().clone()).collect::<Vec<_>>();
            if types(batch.schema_ref()) != types(&self.schema) {
                let text =
                    format!("saved rows have columns {:?}, not {:?}", types(batch.schema_ref()), types(&self.schema));
                return Err(DataFusionError::Execution(text));
            }
            let batch = RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec())?;
            let keys = batch.columns().get(..self.keys.len()).unwrap_or_default().to_vec();
            let numbers = self.number(&keys, batch.num_rows())?;
            self.append(batch, numbers, false)?;
        }
        self.compact()
    }

    /// Removes the rows that were last touched before `moment`. Returns how many.
    pub fn expire(&mut self, moment: Time) -> Result<usize> {
        let before = self.live;
        let Self { segments, places, live, .. } = self;
        for (slot, entry) in segments.iter_mut().enumerate() {
            let Some(segment) = entry.as_mut().filter(|segment| segment.oldest < moment.0) else { continue };
            let mut oldest = i64::MAX;
            for (row, (number, touched)) in segment.numbers.iter().zip(segment.touched.values()).enumerate() {
                let Some(place) = places.get_mut(*number as usize) else { continue };
                if *place != Some(Place { segment: slot as u32, row: row as u32 }) {
                    continue;
                }
                if *touched < moment.0 {
                    *place = None;
                    segment.live -= 1;
                    *live -= 1;
                } else {
                    oldest = oldest.min(*touched);
                }
            }
            segment.oldest = oldest;
            if segment.live == 0 {
                *entry = None;
            }
        }
        self.compact()?;
        Ok(before - self.live)
    }

    /// The numbers of these keys; new keys get a number.
    fn number(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<u32>> {
        let mut numbers = Vec::new();
        self.index.intern(keys, rows, &mut numbers)?;
        self.places.resize(self.index.len(), None);
        if u32::try_from(self.places.len()).is_err() {
            return Err(DataFusionError::ResourcesExhausted(
                "one subtask cannot hold more than 4294967295 keys".into(),
            ));
        }
        Ok(numbers.iter().map(|number| *number as u32).collect())
    }

    /// The rows of the keys with these numbers.
    fn read(&self, numbers: &[u32]) -> Result<Stored> {
        let mut positions = Vec::new();
        let mut places = Vec::new();
        for (position, number) in numbers.iter().enumerate() {
            if let Some(place) = self.places.get(*number as usize).copied().flatten() {
                positions.push(position);
                places.push(place);
            }
        }
        let values = self.keys.len()..self.schema.fields().len() - 1;
        Ok(Stored { positions, values: self.gather(values, &places)? })
    }

    /// The later of the times given and those that the keys with these numbers have.
    fn latest(&self, touched: &TimestampNanosecondArray, numbers: &[u32]) -> TimestampNanosecondArray {
        let before = |number: &u32| {
            let place = self.places.get(*number as usize).copied().flatten()?;
            let segment = self.segments.get(place.segment as usize)?.as_ref()?;
            segment.touched.values().get(place.row as usize).copied()
        };
        let latest = |(time, number): (&i64, &u32)| before(number).map_or(*time, |before| before.max(*time));
        TimestampNanosecondArray::from_iter_values(touched.values().iter().zip(numbers).map(latest))
    }

    /// These columns of the rows at `places`.
    fn gather(&self, columns: std::ops::Range<usize>, places: &[Place]) -> Result<Vec<ArrayRef>> {
        // Interleaving takes the sources without gaps: number the segments that there are.
        let mut sources = Vec::new();
        let mut source_of = vec![0; self.segments.len()];
        for (segment, source) in self.segments.iter().zip(&mut source_of) {
            if let Some(segment) = segment {
                *source = sources.len();
                sources.push(&segment.batch);
            }
        }
        let source = |place: &Place| (source_of.get(place.segment as usize).copied().unwrap_or(0), place.row as usize);
        let rows: Vec<_> = places.iter().map(source).collect();
        let gather = |column: usize| -> Result<ArrayRef> {
            if rows.is_empty() {
                return Ok(arrow::array::new_empty_array(self.schema.field(column).data_type()));
            }
            let sources: Vec<&dyn Array> = sources.iter().map(|batch| batch.column(column).as_ref()).collect();
            Ok(interleave(&sources, &rows)?)
        };
        columns.map(gather).collect()
    }

    /// Adds a segment whose rows replace those that their keys had.
    fn append(&mut self, batch: RecordBatch, numbers: Vec<u32>, is_unsaved: bool) -> Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        let Some(touched) = batch.columns().last().and_then(|c| c.as_any().downcast_ref::<TimestampNanosecondArray>())
        else {
            return Err(DataFusionError::Internal("a state row has no time of last touch".into()));
        };
        let touched = touched.clone();
        let oldest = touched.values().iter().copied().min().unwrap_or(i64::MAX);
        let slot = self.segments.iter().position(Option::is_none).unwrap_or(self.segments.len());
        if slot == self.segments.len() {
            self.segments.push(None);
        }
        for (row, number) in numbers.iter().enumerate() {
            let place = Place { segment: slot as u32, row: row as u32 };
            let old = self.places.get_mut(*number as usize).and_then(|at| at.replace(place));
            match old.and_then(|old| self.segments.get_mut(old.segment as usize)) {
                None => self.live += 1,
                Some(entry) => {
                    if let Some(segment) = entry {
                        segment.live -= 1;
                        if segment.live == 0 {
                            *entry = None;
                        }
                    }
                }
            }
        }
        let live = numbers.len();
        if let Some(entry) = self.segments.get_mut(slot) {
            *entry = Some(Segment { batch, numbers, live, touched, oldest, is_unsaved });
        }
        Ok(())
    }

    /// Writes segments again that are mostly garbage or, when there are many, small; forgets the numbers of keys that
    /// have no row when those are the most.
    fn compact(&mut self) -> Result<()> {
        if self.index.len() > 2 * self.live + self.segment_rows {
            return self.renumber();
        }
        let small = |segment: &Segment| segment.live < self.segment_rows / 2;
        let merge_small = self.segments.iter().flatten().filter(|s| small(s)).count() > SMALL_SEGMENTS;
        let chosen = |segment: &Segment| segment.live * 2 < segment.batch.num_rows() || (merge_small && small(segment));
        let slots = self.segments.iter().enumerate();
        let chosen: Vec<_> = slots.filter(|(_, s)| s.as_ref().is_some_and(chosen)).map(|(slot, _)| slot).collect();
        let (numbers, places) = self.live_rows(&chosen);
        let batches = self.copy(&places)?;
        let mut numbers = numbers.as_slice();
        for batch in batches {
            let (first, rest) = numbers.split_at_checked(batch.num_rows()).unwrap_or((numbers, &[]));
            self.append(batch, first.to_vec(), false)?;
            numbers = rest;
        }
        Ok(())
    }

    /// Numbers the keys that have a row anew, and forgets all others.
    fn renumber(&mut self) -> Result<()> {
        let all: Vec<_> = (0..self.segments.len()).collect();
        let (old, places) = self.live_rows(&all);
        let batches = self.copy(&places)?;
        let unsaved = std::mem::take(&mut self.unsaved);
        let mut old = old.as_slice();
        self.index = KeyIndex::try_new(&self.keys)?;
        self.places = Vec::new();
        self.segments = Vec::new();
        self.live = 0;
        for batch in batches {
            let keys = batch.columns().get(..self.keys.len()).unwrap_or_default().to_vec();
            let numbers = self.number(&keys, batch.num_rows())?;
            let (were, rest) = old.split_at_checked(numbers.len()).unwrap_or((old, &[]));
            let still_unsaved = were.iter().zip(&numbers).filter(|(were, _)| unsaved.contains(**were));
            self.unsaved.note(&still_unsaved.map(|(_, number)| *number).collect::<Vec<_>>());
            old = rest;
            self.append(batch, numbers, false)?;
        }
        Ok(())
    }

    /// The key numbers and places of the live rows of these segments.
    fn live_rows(&self, slots: &[usize]) -> (Vec<u32>, Vec<Place>) {
        let mut live = (Vec::new(), Vec::new());
        for slot in slots {
            let Some(Some(segment)) = self.segments.get(*slot) else { continue };
            for (row, number) in segment.numbers.iter().enumerate() {
                let place = Place { segment: *slot as u32, row: row as u32 };
                if self.places.get(*number as usize) == Some(&Some(place)) {
                    live.0.push(*number);
                    live.1.push(place);
                }
            }
        }
        live
    }

    /// The rows at `places` as batches of a full segment each, but for the last.
    fn copy(&self, places: &[Place]) -> Result<Vec<RecordBatch>> {
        let batch = |places: &[Place]| -> Result<RecordBatch> {
            let columns = self.gather(0..self.schema.fields().len(), places)?;
            Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
        };
        places.chunks(self.segment_rows).map(batch).collect()
    }
}

/// The same array, not as a part of a larger one that would live as long.
fn own(array: ArrayRef) -> Result<ArrayRef> {
    if array.is_empty() || array.get_buffer_memory_size() <= 2 * array.to_data().get_slice_memory_size()? {
        return Ok(array);
    }
    let all = arrow::array::UInt32Array::from_iter_values(0..array.len() as u32);
    Ok(take(&array, &all, None)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::datatypes::Int64Type;
    use proptest::prelude::*;

    use super::*;

    type Key = Option<i64>;
    type Model = HashMap<Key, (i64, String, i64)>;

    #[derive(Debug, Clone)]
    enum Step {
        /// Adds 1 to each key's count and appends to its text, at this time.
        Touch(Vec<Key>, i64),
        Expire(i64),
        /// Saves; the rows are part of the log.
        Save(Part),
    }

    fn table(segment_rows: usize) -> KeyedTable {
        let field = |name, data_type| Arc::new(Field::new(name, data_type, true));
        let values = [field("count", DataType::Int64), field("text", DataType::Utf8)];
        let mut table = KeyedTable::try_new(vec![field("key", DataType::Int64)], &values).unwrap();
        table.segment_rows = segment_rows;
        table
    }

    fn rows(stored: &Stored) -> HashMap<usize, (i64, String)> {
        let (counts, texts) = (stored.values[0].as_primitive::<Int64Type>(), stored.values[1].as_string::<i32>());
        let row = |(i, position): (usize, &usize)| (*position, (counts.value(i), texts.value(i).to_owned()));
        stored.positions.iter().enumerate().map(row).collect()
    }

    fn touch(table: &mut KeyedTable, keys: &[Key], time: i64) -> HashMap<usize, (i64, String)> {
        let mut seen = HashMap::new();
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(keys.to_vec()))];
        let touched = TimestampNanosecondArray::from(vec![time; keys.len()]);
        let merged = table.update(&columns, &touched, |stored| {
            seen = rows(&stored);
            let old = |i: usize| seen.get(&i).cloned().unwrap_or_default();
            let counts: Int64Array = (0..keys.len()).map(|i| Some(old(i).0 + 1)).collect();
            let texts: StringArray = (0..keys.len()).map(|i| Some(format!("{}{time},", old(i).1))).collect();
            Ok::<_, DataFusionError>(vec![Arc::new(counts) as ArrayRef, Arc::new(texts)])
        });
        merged.unwrap();
        seen
    }

    fn touch_model(model: &mut Model, keys: &[Key], time: i64) -> HashMap<usize, (i64, String)> {
        let mut seen = HashMap::new();
        for (i, key) in keys.iter().enumerate() {
            if let Some((count, text, _)) = model.get(key) {
                seen.insert(i, (*count, text.clone()));
            }
            let row = model.entry(*key).or_default();
            *row = (row.0 + 1, format!("{}{time},", row.1), time.max(row.2));
        }
        seen
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = prop_oneof![9 => (0..60i64).prop_map(Some), 1 => Just(None)];
        let keys = proptest::collection::hash_set(key, 0..20).prop_map(|keys| keys.into_iter().collect());
        let step = prop_oneof![
            5 => (keys, 0..100i64).prop_map(|(keys, time)| Step::Touch(keys, time)),
            1 => (0..110i64).prop_map(Step::Expire),
            1 => Just(Step::Save(Part::Changes)),
            1 => Just(Step::Save(Part::Everything)),
        ];
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(steps in steps(), segment_rows in 1..40usize) {
            let (mut table, mut restored) = (self::table(segment_rows), self::table(segment_rows));
            let mut model = Model::new();
            // Keys are touched at the watermark or later, and expire behind it.
            let (mut watermark, mut log) = (0, Vec::new());
            for step in steps.into_iter().chain([Step::Save(Part::Changes)]) {
                match step {
                    Step::Touch(keys, time) => {
                        let time = time.max(watermark);
                        prop_assert_eq!(touch(&mut table, &keys, time), touch_model(&mut model, &keys, time));
                    }
                    Step::Save(part) => {
                        if part == Part::Everything {
                            log.clear();
                        }
                        log.extend(table.save(part).unwrap());
                    }
                    Step::Expire(moment) => {
                        watermark = watermark.max(moment);
                        let before = model.len();
                        model.retain(|_, (_, _, touched)| *touched >= moment);
                        prop_assert_eq!(table.expire(Time(moment)).unwrap(), before - model.len());
                    }
                }
                prop_assert_eq!(table.len(), model.len());
            }
            restored.restore(log).unwrap();
            restored.expire(Time(watermark)).unwrap();
            let all: Vec<Key> = (0..60).map(Some).chain([None]).collect();
            let expected = touch_model(&mut model, &all, 200);
            prop_assert_eq!(touch(&mut table, &all, 200), expected.clone());
            prop_assert_eq!(touch(&mut restored, &all, 200), expected);
            prop_assert_eq!(restored.save(Part::Changes).unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 61);
        }
    }

    #[test]
    fn a_snapshot_of_changes_has_what_has_changed() {
        let mut table = table(64);
        touch(&mut table, &(0..500).map(Some).collect::<Vec<_>>(), 1);
        let count =
            |table: &mut KeyedTable, part| table.save(part).unwrap().iter().map(RecordBatch::num_rows).sum::<usize>();
        assert_eq!(count(&mut table, Part::Changes), 500);
        for round in 0..20 {
            touch(&mut table, &[Some(3), Some(100 + round)], 2);
        }
        assert_eq!(count(&mut table, Part::Changes), 21, "each key once");
        assert_eq!(count(&mut table, Part::Changes), 0);
        assert_eq!(count(&mut table, Part::Everything), 500);
    }

    #[test]
    fn rows_of_other_columns_are_not_taken_back() {
        let other = Arc::new(Field::new("count", DataType::Float64, true));
        let mut saved =
            KeyedTable::try_new(vec![Arc::new(Field::new("key", DataType::Int64, true))], &[other]).unwrap();
        let keys: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1]))];
        let values = || Arc::new(arrow::array::Float64Array::from(vec![1.0])) as ArrayRef;
        let times = TimestampNanosecondArray::from(vec![1]);
        saved.update(&keys, &times, |_| Ok::<_, DataFusionError>(vec![values()])).unwrap();
        assert!(table(64).restore(saved.save(Part::Everything).unwrap()).is_err());
    }

    #[test]
    fn garbage_and_small_segments_stay_bounded() {
        let mut table = table(64);
        for round in 0..2000i64 {
            let keys: Vec<Key> = (0..10).map(|i| Some((round * 7 + i * 31) % 1000)).collect();
            touch(&mut table, &keys, round);
            let kept: usize = table.segments.iter().flatten().map(|s| s.batch.num_rows()).sum();
            assert!(kept <= 2 * table.len() + 64, "{kept} rows kept for {} keys", table.len());
            let segments = table.segments.iter().flatten().count();
            assert!(segments <= table.len() / 32 + SMALL_SEGMENTS + 2, "{segments} segments");
        }
    }

    #[test]
    fn keys_that_never_come_back_leave_nothing_behind() {
        let mut table = table(64);
        for round in 0..500i64 {
            let keys: Vec<Key> = (0..50).map(|i| Some(round * 50 + i)).collect();
            touch(&mut table, &keys, round);
            table.expire(Time(round - 3)).unwrap();
            assert!(table.len() <= 200);
            assert!(table.index.len() <= 2 * 200 + 64 + 50, "{} numbers", table.index.len());
        }
    }

    #[test]
    fn without_key_columns_there_is_one_row() {
        let count = Arc::new(Field::new("count", DataType::Int64, true));
        let mut table = KeyedTable::try_new(Vec::new(), &[count]).unwrap();
        for expected in [None, Some(7)] {
            let written = table.update(&[], &TimestampNanosecondArray::from(vec![1]), |stored| {
                let seen = stored.values[0].as_primitive::<Int64Type>();
                assert_eq!(seen.iter().next().flatten(), expected);
                Ok::<_, DataFusionError>(vec![Arc::new(Int64Array::from(vec![7])) as ArrayRef])
            });
            written.unwrap();
        }
        assert_eq!(table.len(), 1);
    }
}

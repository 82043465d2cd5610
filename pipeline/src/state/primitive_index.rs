//! Numbers for keys of one column of integers or times.
//!
//! DataFusion's index looks keys up one after the other, and each waits for memory two or three times as soon as the table is
//! larger than the caches. Here a batch is looked up in passes. One asks for a slot of every row, the next for the key that is
//! there, and only then are keys compared: nothing in a pass that reads the table depends on what was read for the row
//! before, not even the place of a store, so that the processor has many reads under way at once.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{self as types, DataType, TimeUnit};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::GroupValues;
use foldhash::fast::FixedState;

/// A slot without a key.
const EMPTY: u32 = u32::MAX;

const LEAST_SLOTS: usize = 64;

/// Up to so many slots, they and their keys are in the nearer caches: there is nothing to wait for.
const NEAR_SLOTS: usize = 1 << 15;

/// An index of keys of this type, if there is one.
pub(super) fn of_type(data_type: &DataType) -> Option<Box<dyn GroupValues>> {
    macro_rules! by_type {
        ($($pattern:pat => $arrow:ident),+ $(,)?) => {
            match data_type {
                $($pattern => Some(Box::new(PrimitiveIndex::<types::$arrow>::new(data_type.clone()))),)+
                _ => None,
            }
        };
    }
    by_type! {
        DataType::Int32 => Int32Type,
        DataType::Int64 => Int64Type,
        DataType::UInt32 => UInt32Type,
        DataType::UInt64 => UInt64Type,
        DataType::Date32 => Date32Type,
        DataType::Timestamp(TimeUnit::Second, _) => TimestampSecondType,
        DataType::Timestamp(TimeUnit::Millisecond, _) => TimestampMillisecondType,
        DataType::Timestamp(TimeUnit::Microsecond, _) => TimestampMicrosecondType,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => TimestampNanosecondType,
    }
}

/// A hash table with linear probing, at most half full. The slots hold numbers only: 4 bytes for a key of any type. New keys of
/// a batch are numbered in the order of their rows unless hashes meet.
struct PrimitiveIndex<T: ArrowPrimitiveType> {
    data_type: DataType,
    /// How far a hash is shifted to be a slot: the table has `2^(64 - shift)` of them.
    shift: u32,
    slots: Vec<u32>,
    /// By number. That of the null is any value.
    keys: Vec<T::Native>,
    null: Option<u32>,
    hasher: FixedState,
}

/// A row whose key is looked for, and where.
#[derive(Clone, Copy)]
struct Search {
    row: u32,
    slot: u32,
}

/// The rows of a batch that have not found their key yet, and what was read for each. Made for each batch: there may be
/// thousands of tables, one for each open window, and memory that was just used is near.
#[derive(Default)]
struct Searches<K> {
    open: Vec<Search>,
    /// What the slots have.
    numbers: Vec<u32>,
    /// The keys of these numbers.
    found: Vec<K>,
    /// Rows whose search met an empty slot.
    new: Vec<u32>,
}

impl<T: ArrowPrimitiveType> PrimitiveIndex<T>
where
    T::Native: std::hash::Hash + Eq,
{
    fn new(data_type: DataType) -> Self {
        let mut index = Self {
            data_type,
            shift: 0,
            slots: Vec::new(),
            keys: Vec::new(),
            null: None,
            hasher: FixedState::default(),
        };
        index.lay_out(LEAST_SLOTS);
        index
    }

    /// Empties the table and gives it `slots` slots, a power of two.
    fn lay_out(&mut self, slots: usize) {
        self.shift = 64 - slots.trailing_zeros();
        self.slots.clear();
        self.slots.resize(slots, EMPTY);
        self.slots.shrink_to(slots);
    }

    fn home(&self, key: T::Native) -> usize {
        (self.hasher.hash_one(key) >> self.shift) as usize
    }

    fn after(&self, slot: usize) -> usize {
        (slot + 1) & (self.slots.len() - 1)
    }

    /// The number of `key`, which is a new one if it has none.
    fn number(&mut self, key: T::Native) -> Result<u32> {
        let mut slot = self.home(key);
        loop {
            match self.slots.get_mut(slot) {
                Some(number) if *number == EMPTY => {
                    *number = next_number(&self.keys)?;
                    let number = *number;
                    self.keys.push(key);
                    self.grow_if_full();
                    return Ok(number);
                }
                Some(number) if self.keys.get(*number as usize) == Some(&key) => return Ok(*number),
                _ => slot = self.after(slot),
            }
        }
    }

    /// The number of the null.
    fn number_of_null(&mut self) -> Result<u32> {
        match self.null {
            Some(number) => Ok(number),
            None => {
                let number = next_number(&self.keys)?;
                self.keys.push(T::Native::default());
                self.null = Some(number);
                Ok(number)
            }
        }
    }

    fn grow_if_full(&mut self) {
        if self.keys.len() * 2 <= self.slots.len() {
            return;
        }
        self.lay_out(self.slots.len() * 2);
        for number in 0..self.keys.len() {
            let Some(key) = self.keys.get(number).filter(|_| self.null != Some(number as u32)) else { continue };
            let mut slot = self.home(*key);
            while self.slots.get(slot).is_some_and(|taken| *taken != EMPTY) {
                slot = self.after(slot);
            }
            if let Some(slot) = self.slots.get_mut(slot) {
                *slot = number as u32;
            }
        }
    }

    /// Rows without nulls. Most find their key in its first slot; the others look on, all of them at their next slot in each
    /// turn. New keys are numbered at the end.
    fn intern_valid(&mut self, keys: &[T::Native], numbers: &mut Vec<usize>) -> Result<()> {
        let mut searches = Searches::default();
        if self.slots.len() <= NEAR_SLOTS {
            searches.open = self.look_near(keys, numbers);
        } else {
            searches.open.extend((0..).zip(keys).map(|(row, key)| self.search(row, *key)));
            numbers.resize(keys.len(), 0);
        }
        while !searches.open.is_empty() {
            self.read(&mut searches);
            searches.sort_out(keys, numbers);
            searches.open.iter_mut().for_each(|search| search.slot = self.after(search.slot as usize) as u32);
        }
        for row in searches.new {
            if let (Some(key), Some(number)) = (keys.get(row as usize), numbers.get_mut(row as usize)) {
                *number = self.number(*key)? as usize;
            }
        }
        Ok(())
    }

    fn search(&self, row: u32, key: T::Native) -> Search {
        Search { row, slot: self.home(key) as u32 }
    }

    /// Tells rows the numbers of their first slots. Returns a search for each whose key is not there. Fewer steps a row, for a
    /// small table.
    fn look_near(&self, keys: &[T::Native], numbers: &mut Vec<usize>) -> Vec<Search> {
        numbers.extend(keys.iter().map(|key| self.slots.get(self.home(*key)).copied().unwrap_or(EMPTY) as usize));
        let mut missed = vec![0; keys.len()];
        let mut count = 0;
        for (row, (key, number)) in (0..).zip(keys.iter().zip(numbers.iter())) {
            // Written whether it is a miss or not: a branch would be guessed wrong too often.
            if let Some(place) = missed.get_mut(count) {
                *place = row;
            }
            count += usize::from(self.keys.get(*number) != Some(key));
        }
        let search = |row: &u32| keys.get(*row as usize).map(|key| self.search(*row, *key));
        missed.iter().take(count).filter_map(search).collect()
    }

    /// Reads the slot of each search, and then the key of each number.
    fn read(&self, searches: &mut Searches<T::Native>) {
        let Searches { open, numbers, found, .. } = searches;
        numbers.clear();
        numbers.extend(open.iter().map(|search| self.slots.get(search.slot as usize).copied().unwrap_or(EMPTY)));
        found.clear();
        found.extend(numbers.iter().map(|number| self.keys.get(*number as usize).copied().unwrap_or_default()));
    }
}

impl<K: Copy + Eq> Searches<K> {
    /// Tells rows the numbers that were read, and leaves the searches that go on. Rows whose slot is empty are new.
    fn sort_out(&mut self, keys: &[K], numbers: &mut [usize]) {
        let mut left = 0;
        for (at, (number, found)) in self.numbers.iter().zip(&self.found).enumerate() {
            let Some(search) = self.open.get(at).copied() else { break };
            let row = search.row as usize;
            let (Some(key), Some(place)) = (keys.get(row), numbers.get_mut(row)) else { break };
            *place = *number as usize;
            let is_new = *number == EMPTY;
            if is_new {
                self.new.push(search.row);
            }
            // Written whether it goes on or not: a branch would be guessed wrong too often.
            if let Some(place) = self.open.get_mut(left) {
                *place = search;
            }
            left += usize::from((found != key) & !is_new);
        }
        self.open.truncate(left);
    }
}

/// The number of the next key.
fn next_number<K>(keys: &[K]) -> Result<u32> {
    let full = || DataFusionError::ResourcesExhausted(format!("one subtask cannot hold more than {EMPTY} keys"));
    u32::try_from(keys.len()).ok().filter(|number| *number != EMPTY).ok_or_else(full)
}

impl<T: ArrowPrimitiveType> GroupValues for PrimitiveIndex<T>
where
    T::Native: std::hash::Hash + Eq,
{
    fn intern(&mut self, columns: &[ArrayRef], numbers: &mut Vec<usize>) -> Result<()> {
        numbers.clear();
        let Some(keys) = columns.first().and_then(|column| column.as_primitive_opt::<T>()) else {
            return Err(DataFusionError::Internal(format!("keys are not of type {}", self.data_type)));
        };
        if keys.null_count() == 0 {
            return self.intern_valid(keys.values(), numbers);
        }
        for key in keys {
            let number = match key {
                Some(key) => self.number(key)?,
                None => self.number_of_null()?,
            };
            numbers.push(number as usize);
        }
        Ok(())
    }

    fn size(&self) -> usize {
        self.slots.capacity() * size_of::<u32>() + self.keys.capacity() * size_of::<T::Native>()
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys in the order of their numbers; none are left.
    fn emit(&mut self, which: EmitTo) -> Result<Vec<ArrayRef>> {
        let EmitTo::All = which else {
            return Err(DataFusionError::Internal("an index of keys gives all of them or none".to_owned()));
        };
        let keys = std::mem::take(&mut self.keys);
        let null = self.null.take();
        let nulls = null.map(|null| (0..keys.len()).map(|number| number != null as usize).collect::<NullBuffer>());
        // As many are likely to come again; a table that had far fewer than it has room for gives it back.
        self.keys.reserve(keys.len());
        let slots = if keys.len() * 16 < self.slots.len() { self.slots.len() / 8 } else { self.slots.len() };
        self.lay_out(slots.max(LEAST_SLOTS));
        let keys = PrimitiveArray::<T>::new(keys.into(), nulls).with_data_type(self.data_type.clone());
        Ok(vec![Arc::new(keys)])
    }

    fn clear_shrink(&mut self, _rows: usize) {
        self.keys.clear();
        self.null = None;
        self.lay_out(self.slots.len());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{Int64Array, TimestampSecondArray};
    use proptest::prelude::*;

    use super::*;

    fn intern(index: &mut dyn GroupValues, keys: ArrayRef) -> Vec<usize> {
        let mut numbers = vec![7; 3];
        index.intern(&[keys], &mut numbers).unwrap();
        numbers
    }

    fn keys() -> impl Strategy<Value = Vec<Option<i64>>> {
        // Few values that meet again, and values of which many share their low or their high bits.
        let key = prop_oneof![
            (0..40i64).prop_map(Some),
            (0..300i64).prop_map(|key| Some(key << 40)),
            any::<i64>().prop_map(Some),
            Just(Some(0)),
        ];
        let some_null = prop_oneof![3 => key.clone(), 1 => Just(None)];
        prop_oneof![proptest::collection::vec(key, 0..400), proptest::collection::vec(some_null, 0..400)]
    }

    proptest! {
        #[test]
        fn numbers_keys_as_a_map_does(
            batches in proptest::collection::vec(keys(), 1..12),
            taken_after in 1..6usize,
            is_large in any::<bool>(),
        ) {
            let mut index = of_type(&DataType::Int64).unwrap();
            let mut model = HashMap::new();
            if is_large {
                // No longer near.
                let many: Vec<_> = (0..NEAR_SLOTS as i64).map(|key| key * 5).collect();
                let numbers = intern(index.as_mut(), Arc::new(Int64Array::from(many.clone())));
                model.extend(many.into_iter().map(Some).zip(numbers));
            }
            for (at, batch) in batches.iter().enumerate() {
                let numbers = intern(index.as_mut(), Arc::new(Int64Array::from(batch.clone())));
                prop_assert_eq!(numbers.len(), batch.len());
                for (key, number) in batch.iter().zip(numbers) {
                    prop_assert_eq!(*model.entry(*key).or_insert(number), number);
                }
                prop_assert_eq!(index.len(), model.len());
                if at % taken_after == 0 {
                    let keys = index.emit(EmitTo::All).unwrap();
                    let by_number: HashMap<_, _> = keys[0].as_primitive::<types::Int64Type>().iter().zip(0..).collect();
                    prop_assert_eq!(by_number, std::mem::take(&mut model));
                    prop_assert!(index.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_zone_stays_with_the_keys() {
        let times = TimestampSecondArray::from(vec![Some(5), None, Some(5)]).with_timezone("+02:00");
        let mut index = of_type(times.data_type()).unwrap();
        assert_eq!(intern(index.as_mut(), Arc::new(times.clone())), [0, 1, 0]);
        assert_eq!(index.emit(EmitTo::All).unwrap()[0].as_ref(), &times.slice(0, 2));
    }

    #[test]
    fn room_for_many_keys_is_given_back_when_they_do_not_come_again() {
        let mut index = of_type(&DataType::Int64).unwrap();
        intern(index.as_mut(), Arc::new(Int64Array::from_iter_values(0..200_000)));
        let full = index.size();
        for _ in 0..8 {
            index.emit(EmitTo::All).unwrap();
            intern(index.as_mut(), Arc::new(Int64Array::from_iter_values(0..10)));
        }
        assert!(full > 2_000_000 && index.size() < 10_000, "{full} bytes, then {}", index.size());
    }

    #[test]
    fn other_keys_than_its_own_are_refused() {
        let mut index = of_type(&DataType::Int64).unwrap();
        let texts: ArrayRef = Arc::new(arrow::array::StringArray::from(vec!["a"]));
        assert!(index.intern(&[texts], &mut Vec::new()).is_err());
        assert!(of_type(&DataType::Utf8).is_none());
    }
}

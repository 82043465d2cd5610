//! Turns each element of a list into a row.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use std::task::{self, Poll};

use super::error::column;
use super::held::HeldWatermarks;
use super::{BATCH_ROWS, NodeError};
use crate::plan::{EventTimeUse, NodePlan, StreamSchema};
use crate::runtime::{Body, Context, Operator, OperatorError, Stage, Subtask, Watermark};

const KIND: &str = "unnest";

/// One row for each element of a list column, in the elements' order; the other columns repeat. A null or empty list
/// gives no row.
#[derive(Debug)]
pub struct Unnest {
    column: usize,
    name: String,
    output: StreamSchema,
}

impl Unnest {
    /// Replaces list column `column` of `input` by its elements, under the same name.
    pub fn try_new(input: &StreamSchema, column: usize) -> Result<Self, NodeError> {
        let list = self::column(KIND, input, column)?;
        let element = match list.data_type() {
            DataType::List(element) | DataType::LargeList(element) => element,
            actual => {
                let (what, actual) = (list.name().clone(), actual.clone());
                return Err(NodeError::Type { node: KIND, what, needed: "a list", actual });
            }
        };
        let mut fields = input.visible().to_vec();
        if let Some(field) = fields.get_mut(column) {
            *field = Arc::new(Field::new(list.name(), element.data_type().clone(), element.is_nullable()));
        }
        let output = StreamSchema::new(fields, input.kind())?;
        Ok(Self { column, name: list.name().clone(), output })
    }
}

impl NodePlan for Unnest {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![("list", format!("{}@{}", self.name, self.column))]
    }

    fn event_time(&self) -> EventTimeUse {
        EventTimeUse::PassedOn
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }
}

impl Stage for Unnest {
    fn build(&self, _subtask: &Subtask) -> Result<Body, OperatorError> {
        let output = Arc::clone(self.output.schema());
        Ok(Body::Operator(Box::new(UnnestOperator {
            column: self.column,
            output,
            open: None,
            held: HeldWatermarks::default(),
        })))
    }
}

/// One subtask of an [`Unnest`].
///
/// A batch of long lists becomes many batches. They are made one by one as the runtime asks for work, and no further
/// input is taken meanwhile: the repeated columns of only one are in memory.
struct UnnestOperator {
    column: usize,
    output: SchemaRef,
    open: Option<Open>,
    /// Watermarks that came while `open` had rows left.
    held: HeldWatermarks,
}

/// A batch whose lists are not all sent yet.
struct Open {
    batch: RecordBatch,
    /// The elements of all lists, one after the other.
    elements: ArrayRef,
    /// The bounds of each row's list in `elements`; empty for a null list.
    bounds: Vec<(usize, usize)>,
    /// The first row that has elements left, and the first of them.
    row: usize,
    element: usize,
}

impl Open {
    fn new(batch: RecordBatch, column: usize) -> Result<Self, OperatorError> {
        let list = batch.columns().get(column).ok_or_else(|| OperatorError::internal("the list column is missing"))?;
        let (elements, bounds) = match list.data_type() {
            DataType::List(_) => {
                let list = list.as_list::<i32>();
                (Arc::clone(list.values()), bounds(list, list.value_offsets()))
            }
            DataType::LargeList(_) => {
                let list = list.as_list::<i64>();
                (Arc::clone(list.values()), bounds(list, list.value_offsets()))
            }
            other => return Err(OperatorError::internal(format!("the list column is {other}"))),
        };
        let element = bounds.first().map_or(0, |(start, _)| *start);
        Ok(Self { batch, elements, bounds, row: 0, element })
    }

    /// The next rows, at most [`BATCH_ROWS`]; `None` when all were given.
    fn next(&mut self, column: usize, output: &SchemaRef) -> Result<Option<RecordBatch>, OperatorError> {
        let mut rows: Vec<u32> = Vec::new();
        // The runs of elements taken. Lists that touch make one run, so that there is mostly one.
        let mut runs: Vec<(usize, usize)> = Vec::new();
        while rows.len() < BATCH_ROWS {
            let Some((_, end)) = self.bounds.get(self.row).copied() else { break };
            let count = (end - self.element).min(BATCH_ROWS - rows.len());
            rows.extend(std::iter::repeat_n(self.row as u32, count));
            match runs.last_mut() {
                _ if count == 0 => {}
                Some((_, stop)) if *stop == self.element => *stop += count,
                _ => runs.push((self.element, self.element + count)),
            }
            self.element += count;
            if self.element == end {
                self.row += 1;
                self.element = self.bounds.get(self.row).map_or(0, |(start, _)| *start);
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let elements = match runs.as_slice() {
            [(start, end)] => self.elements.slice(*start, end - start),
            runs => {
                let indexes: UInt32Array = runs.iter().flat_map(|(start, end)| *start as u32..*end as u32).collect();
                take(&self.elements, &indexes, None)?
            }
        };
        let rows = UInt32Array::from(rows);
        let repeat = |(index, values): (usize, &ArrayRef)| match index == column {
            true => Ok(Arc::clone(&elements)),
            false => take(values, &rows, None),
        };
        let columns = self.batch.columns().iter().enumerate().map(repeat).collect::<Result<_, _>>()?;
        Ok(Some(RecordBatch::try_new(Arc::clone(output), columns)?))
    }

    fn is_done(&self) -> bool {
        self.bounds.get(self.row..).is_none_or(|left| left.iter().all(|(start, end)| start == end))
    }
}

fn bounds<O: arrow::array::OffsetSizeTrait>(list: &dyn Array, offsets: &[O]) -> Vec<(usize, usize)> {
    let ends = offsets.iter().skip(1);
    let bounds = offsets.iter().zip(ends).map(|(start, end)| (start.as_usize(), end.as_usize()));
    match list.nulls() {
        None => bounds.collect(),
        // Arrow allows elements behind a null list; they are not its elements.
        Some(nulls) => {
            bounds.zip(nulls).map(|((start, end), valid)| (start, if valid { end } else { start })).collect()
        }
    }
}

impl UnnestOperator {
    fn send_next(&mut self, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        if let Some(open) = &mut self.open {
            if let Some(rows) = open.next(self.column, &self.output)? {
                cx.emit(rows);
            }
            if open.is_done() {
                self.open = None;
            }
        }
        if self.open.is_none() {
            self.held.release(cx);
        }
        Ok(())
    }
}

impl Operator for UnnestOperator {
    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.open = Some(Open::new(batch, self.column)?);
        self.send_next(cx)
    }

    fn watermark(&mut self, watermark: Watermark, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        self.held.hold(watermark);
        if self.open.is_none() {
            self.held.release(cx);
        }
        Ok(())
    }

    fn poll_work(&mut self, _task: &mut task::Context<'_>, cx: &mut Context<'_>) -> Poll<Result<(), OperatorError>> {
        match self.open {
            Some(_) if !cx.is_blocked() => Poll::Ready(self.send_next(cx)),
            _ => Poll::Pending,
        }
    }

    fn accepts_input(&self) -> bool {
        self.open.is_none()
    }

    fn is_settled(&self) -> bool {
        self.open.is_none()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BooleanArray, LargeListArray, ListArray, RecordBatchOptions, TimestampNanosecondArray};
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::compute::cast;
    use arrow::datatypes::{Int64Type, UInt32Type};
    use proptest::prelude::*;

    use super::*;
    use crate::operators::testing::{Driver, cut, field, lengths, lines};
    use crate::plan::StreamKind;
    use crate::runtime::Time;

    type Lists = Vec<Option<Vec<Option<i64>>>>;

    fn schema(list: DataType) -> StreamSchema {
        StreamSchema::new([field("n", DataType::UInt32), field("list", list)], StreamKind::Append).unwrap()
    }

    fn list_of(element: DataType) -> DataType {
        DataType::List(Arc::new(Field::new_list_field(element, true)))
    }

    fn batch(lists: ArrayRef) -> RecordBatch {
        let rows = lists.len() as u32;
        let schema = schema(lists.data_type().clone());
        let n: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..rows));
        let time = Arc::new(TimestampNanosecondArray::from_iter_values((0..rows).map(i64::from)));
        RecordBatch::try_new(Arc::clone(schema.schema()), vec![n, lists, time]).unwrap()
    }

    fn pairs(batch: &RecordBatch) -> Vec<(u32, Option<i64>)> {
        let (n, element) = (batch.column(0).as_primitive::<UInt32Type>(), batch.column(1).as_primitive::<Int64Type>());
        n.values().iter().copied().zip(element).collect()
    }

    fn expected(lists: &Lists) -> Vec<(u32, Option<i64>)> {
        let row = |(n, list): (usize, &Option<Vec<Option<i64>>>)| {
            list.clone().unwrap_or_default().into_iter().map(move |element| (n as u32, element))
        };
        lists.iter().enumerate().flat_map(row).collect()
    }

    #[test]
    fn elements_become_rows_and_the_rest_repeats() {
        let unnest = Unnest::try_new(&schema(list_of(DataType::Int64)), 1).unwrap();
        assert_eq!(unnest.output().unwrap().visible()[1].as_ref(), field("list", DataType::Int64).as_ref());
        let lists: Lists = vec![Some(vec![Some(7), None]), None, Some(vec![]), Some(vec![Some(8)])];
        let mut driver = Driver::new(&unnest);
        driver.rows(batch(Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists)))).unwrap();
        let time = |ns| format!("1970-01-01T00:00:00{ns}");
        let expected =
            [format!("0|7|{}", time("")), format!("0|null|{}", time("")), format!("3|8|{}", time(".000000003"))];
        assert_eq!(lines(&driver.sent_rows()), expected);
    }

    #[test]
    fn long_lists_leave_in_batches_before_the_next_watermark() {
        let rows = 3 * BATCH_ROWS as i64 + 5;
        let lists: Lists = vec![Some((0..rows).map(Some).collect()), Some(vec![Some(-1)])];
        let mut driver = Driver::new(&Unnest::try_new(&schema(list_of(DataType::Int64)), 1).unwrap());
        driver.offer(batch(Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists.clone())))).unwrap();
        driver.watermark(Watermark::At(Time(5)));
        driver.watermark(Watermark::Idle);
        assert_eq!(driver.trace(), ["8192 rows"], "one batch at a time");
        assert!(!driver.accepts_input() && !driver.is_settled());
        driver.work().unwrap();
        assert_eq!(driver.trace(), ["8192 rows", "8192 rows", "6 rows", "at 5", "idle"]);
        assert!(driver.accepts_input() && driver.is_settled());
    }

    #[test]
    fn elements_behind_a_null_list_are_not_its_elements() {
        let elements = Arc::new(arrow::array::Int64Array::from(vec![1, 2, 3, 4]));
        let item = Arc::new(Field::new_list_field(DataType::Int64, true));
        let nulls = NullBuffer::from(vec![true, false, true]);
        let list = LargeListArray::new(item, OffsetBuffer::from_lengths([1, 2, 1]), elements, Some(nulls));
        let list: ArrayRef = Arc::new(list);
        let mut driver = Driver::new(&Unnest::try_new(&schema(list.data_type().clone()), 1).unwrap());
        driver.rows(batch(list)).unwrap();
        assert_eq!(pairs(&driver.sent_rows()), [(0, Some(1)), (2, Some(4))]);
    }

    #[test]
    fn only_lists_are_unnested() {
        let refused = Unnest::try_new(&schema(DataType::Int64), 1).unwrap_err().to_string();
        assert!(refused.contains("`list`") && refused.contains("Int64"), "{refused}");
        assert!(matches!(Unnest::try_new(&schema(DataType::Int64), 9), Err(NodeError::NoColumn { index: 9, .. })));
    }

    #[test]
    fn retractions_repeat_too() {
        let visible = schema(list_of(DataType::Int64)).visible().to_vec();
        let input = StreamSchema::new(visible, StreamKind::Updating).unwrap();
        let lists: Lists = vec![Some(vec![Some(1), Some(2)]), Some(vec![Some(3)])];
        let mut columns = batch(Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))).columns().to_vec();
        columns.push(Arc::new(BooleanArray::from(vec![true, false])));
        let options = RecordBatchOptions::default();
        let rows = RecordBatch::try_new_with_options(Arc::clone(input.schema()), columns, &options).unwrap();
        let mut driver = Driver::new(&Unnest::try_new(&input, 1).unwrap());
        driver.rows(rows).unwrap();
        let retract: Vec<_> = driver.sent_rows().column(3).as_boolean().iter().flatten().collect();
        assert_eq!(retract, [true, true, false]);
    }

    proptest! {
        #[test]
        fn no_element_is_lost_however_batches_are_cut(
            lists in proptest::collection::vec(
                proptest::option::weighted(0.8, proptest::collection::vec(proptest::option::of(any::<i64>()), 0..5)), 1..60),
            lengths in lengths(),
            large in any::<bool>(),
        ) {
            let array: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists.clone()));
            let item = Arc::new(Field::new_list_field(DataType::Int64, true));
            let array = if large { cast(&array, &DataType::LargeList(item)).unwrap() } else { array };
            let mut driver = Driver::new(&Unnest::try_new(&schema(array.data_type().clone()), 1).unwrap());
            let all = batch(array);
            let mut offset = 0;
            for run in cut(&lists, &lengths) {
                // Slices have offsets that do not begin at 0.
                driver.rows(all.slice(offset, run.len())).unwrap();
                offset += run.len();
            }
            prop_assert_eq!(pairs(&driver.sent_rows()), expected(&lists));
        }
    }
}

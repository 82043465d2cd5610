//! Leaves out the rows that a predicate does not keep and computes the columns of those that stay.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatchOptions};
use arrow::compute::FilterBuilder;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr_common::physical_expr::is_volatile;

use super::NodeError;
use crate::plan::{EventTimeUse, NodePlan, StreamSchema};
use crate::runtime::{Body, Context, Operator, OperatorError, Stage, Subtask};

const KIND: &str = "project";

/// A filter, then a projection. The hidden columns pass through unchanged, so that over an updating stream the predicate
/// meets a retraction and its row alike.
#[derive(Debug)]
pub struct Project {
    input: SchemaRef,
    exprs: Vec<(Arc<dyn PhysicalExpr>, String)>,
    predicate: Option<Arc<dyn PhysicalExpr>>,
    /// The input's column of event time.
    time: usize,
    /// Its hidden columns.
    hidden: Vec<usize>,
    output: StreamSchema,
}

impl Project {
    /// Computes `exprs`, each with its column's name, over the rows of `input` for which `predicate` is true.
    ///
    /// Expressions read `input`'s columns, hidden ones included. Types and nullability of the output are theirs.
    pub fn try_new(
        input: &StreamSchema,
        exprs: Vec<(Arc<dyn PhysicalExpr>, String)>,
        predicate: Option<Arc<dyn PhysicalExpr>>,
    ) -> Result<Self, NodeError> {
        let schema = input.schema();
        let field = |(expr, name): &(Arc<dyn PhysicalExpr>, String)| -> Result<FieldRef, NodeError> {
            Ok(Arc::new(expr.return_field(schema)?.as_ref().clone().with_name(name)))
        };
        let fields = exprs.iter().map(field).collect::<Result<Vec<_>, _>>()?;
        if let Some(predicate) = &predicate {
            let actual = predicate.data_type(schema)?;
            if actual != DataType::Boolean {
                return Err(NodeError::Type { node: KIND, what: predicate.to_string(), needed: "a Boolean", actual });
            }
        }
        let output = StreamSchema::new(fields, input.kind())?;
        let hidden = (input.visible_len()..schema.fields().len()).collect();
        let (input, time) = (Arc::clone(schema), input.timestamp_index());
        Ok(Self { input, exprs, predicate, time, hidden, output })
    }
}

impl NodePlan for Project {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let columns: Vec<_> = self.exprs.iter().map(|(expr, name)| format!("{expr} AS {name}")).collect();
        let filter = self.predicate.iter().map(|predicate| ("filter", predicate.to_string()));
        filter.chain([("columns", columns.join(", "))]).collect()
    }

    fn output(&self) -> Option<&StreamSchema> {
        Some(&self.output)
    }

    fn event_time(&self) -> EventTimeUse {
        let mut exprs = self.exprs.iter().map(|(expr, _)| expr).chain(&self.predicate);
        match exprs.any(|expr| collect_columns(expr).iter().any(|column| column.index() == self.time)) {
            true => EventTimeUse::Read,
            false => EventTimeUse::PassedOn,
        }
    }

    /// False where the expressions are volatile: two calls of `random()` are two streams.
    fn can_be_shared(&self) -> bool {
        !self.exprs.iter().map(|(expr, _)| expr).chain(&self.predicate).any(is_volatile)
    }
}

impl Stage for Project {
    fn build(&self, subtask: &Subtask) -> Result<Body, OperatorError> {
        let filters_time = subtask.event_time_is_read || self.event_time() == EventTimeUse::Read;
        let hidden = || self.hidden.iter().filter(|index| filters_time || **index != self.time);
        // Behind the filter only the columns that are still read are copied; the expressions are renumbered to them.
        let mut kept: Vec<usize> = self.exprs.iter().flat_map(|(e, _)| collect_columns(e)).map(|c| c.index()).collect();
        kept.extend(hidden());
        kept.sort_unstable();
        kept.dedup();
        let exprs = self.exprs.iter().map(|(expr, _)| renumber(expr, &kept));
        Ok(Body::Operator(Box::new(ProjectOperator {
            predicate: self.predicate.clone(),
            exprs: exprs.collect::<Result<_, _>>()?,
            hidden: hidden().filter_map(|index| kept.binary_search(index).ok()).collect(),
            unread_time: (!filters_time).then_some(self.time),
            kept_schema: Arc::new(self.input.project(&kept)?),
            kept,
            output: Arc::clone(self.output.schema()),
        })))
    }
}

/// `expr` over the columns `kept` (sorted) of its input instead of all.
fn renumber(expr: &Arc<dyn PhysicalExpr>, kept: &[usize]) -> Result<Arc<dyn PhysicalExpr>, DataFusionError> {
    let renumbered = Arc::clone(expr).transform(|expr| match expr.downcast_ref::<Column>() {
        Some(column) => match kept.binary_search(&column.index()) {
            Ok(index) => Ok(Transformed::yes(Arc::new(Column::new(column.name(), index)) as _)),
            Err(_) => Err(DataFusionError::Internal(format!("column {column} is not kept"))),
        },
        None => Ok(Transformed::no(expr)),
    })?;
    Ok(renumbered.data)
}

/// One subtask of a [`Project`].
struct ProjectOperator {
    predicate: Option<Arc<dyn PhysicalExpr>>,
    /// The input's columns that the expressions and the output read.
    kept: Vec<usize>,
    kept_schema: SchemaRef,
    /// Over the kept columns.
    exprs: Vec<Arc<dyn PhysicalExpr>>,
    /// Where the hidden columns are among those kept.
    hidden: Vec<usize>,
    /// The input's column of event time, if nobody reads it: as many times leave as rows, but they are not the rows' own.
    unread_time: Option<usize>,
    output: SchemaRef,
}

impl Operator for ProjectOperator {
    fn process(&mut self, _input: usize, batch: RecordBatch, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let Some(rows) = self.filter(&batch)? else {
            return Ok(());
        };
        let count = rows.num_rows();
        let computed = self.exprs.iter().map(|expr| expr.evaluate(&rows)?.into_array(count));
        let mut columns = computed.collect::<Result<Vec<ArrayRef>, _>>()?;
        columns.extend(self.unread_time.iter().map(|index| batch.column(*index).slice(0, count)));
        columns.extend(self.hidden.iter().map(|index| Arc::clone(rows.column(*index))));
        cx.emit(RecordBatch::try_new(Arc::clone(&self.output), columns)?);
        Ok(())
    }
}

impl ProjectOperator {
    /// The kept columns of the rows that the predicate keeps; `None` when it keeps none.
    fn filter(&self, batch: &RecordBatch) -> Result<Option<RecordBatch>, OperatorError> {
        let columns = self.kept.iter().filter_map(|index| batch.columns().get(*index));
        let mask = match &self.predicate {
            None => None,
            Some(predicate) => match predicate.evaluate(batch)? {
                ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))) => None,
                ColumnarValue::Scalar(_) => return Ok(None),
                ColumnarValue::Array(mask) => Some(mask),
            },
        };
        let mask = mask.as_ref().map(|mask| mask.as_boolean());
        let count = mask.map_or(batch.num_rows(), BooleanArray::true_count);
        let columns = match mask {
            _ if count == 0 => return Ok(None),
            Some(mask) if count < batch.num_rows() => {
                let filter = FilterBuilder::new(mask).optimize().build();
                columns.map(|column| filter.filter(column)).collect::<Result<_, _>>()?
            }
            _ => columns.map(Arc::clone).collect(),
        };
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.kept_schema), columns, &options)?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arrow::datatypes::TimestampNanosecondType;
    use datafusion::logical_expr::Operator as Op;
    use datafusion::physical_expr::expressions::{BinaryExpr, binary, col, lit};
    use proptest::prelude::*;

    use super::*;
    use crate::operators::testing::{
        Driver, batch_of, cut, event, events, lengths, lines, oracle, random_events, sorted,
    };
    use crate::operators::{AggregateInput, MemoryTable, UpdatingAggregate};
    use crate::plan::{Dataflow, Exchange, StreamKind, TIMESTAMP_COLUMN};
    use crate::runtime::Job;

    fn expr(left: &str, op: Op, right: i64) -> Arc<dyn PhysicalExpr> {
        let schema = events();
        binary(col(left, schema.schema()).unwrap(), op, lit(right), schema.schema()).unwrap()
    }

    fn column(name: &str) -> Arc<dyn PhysicalExpr> {
        col(name, events().schema()).unwrap()
    }

    #[test]
    fn event_time_is_filtered_where_it_is_read() {
        let project = || {
            let exprs = vec![(column("v"), "v".to_owned())];
            Arc::new(Project::try_new(&events(), exprs, Some(expr("k", Op::Gt, 1))).unwrap())
        };
        let mut job: Job = Dataflow::default();
        let source = job.add(None, Arc::new(MemoryTable::try_new(&events()).unwrap()), vec![]).unwrap();
        let first = job.add(Some("a"), project(), vec![(source, Exchange::Forward)]).unwrap();
        let rows = project();
        let second = job.add(Some("b"), Arc::clone(&rows) as _, vec![(source, Exchange::Forward)]).unwrap();
        let input = rows.output().unwrap();
        let sink = |input: &StreamSchema| Arc::new(MemoryTable::try_new(input).unwrap());
        job.add(Some("c"), sink(input), vec![(first, Exchange::Forward)]).unwrap();
        assert_eq!(job.event_times_read(), [false; 4], "nothing is at the end of either branch");
        let keys = UpdatingAggregate::try_new(input, AggregateInput::Rows, vec![0], vec![], Duration::from_secs(1));
        job.add(None, Arc::new(keys.unwrap()), vec![(second, Exchange::Forward)]).unwrap();
        assert_eq!(job.event_times_read(), [true, false, true, false, false]);

        let batch = batch_of(&[event(1, 10, 5), event(2, 20, 6), event(3, 30, 7)]);
        for (is_read, times) in [(true, [6, 7]), (false, [5, 6])] {
            let mut driver = Driver::with_readers(rows.as_ref(), is_read);
            driver.rows(batch.clone()).unwrap();
            let sent = driver.sent_rows();
            assert_eq!(lines(&sent.project(&[0]).unwrap()), ["20", "30"]);
            assert_eq!(sent.column(1).as_primitive::<TimestampNanosecondType>().values().to_vec(), times);
        }
    }

    #[test]
    fn hidden_columns_pass_and_expressions_read_them() {
        let exprs = vec![(expr("v", Op::Plus, 1), "w".to_owned()), (column(TIMESTAMP_COLUMN), "at".to_owned())];
        let project = Project::try_new(&events(), exprs, Some(expr("k", Op::Gt, 1))).unwrap();
        let fields = project.output().unwrap().schema().fields();
        assert_eq!(fields[0].data_type(), &DataType::Int64);
        assert!(fields[0].is_nullable() && !fields[1].is_nullable());

        let mut driver = Driver::new(&project);
        driver.rows(batch_of(&[event(1, 10, 5), event(2, 20, 6), event(3, 30, 7)])).unwrap();
        let at = |ns| format!("1970-01-01T00:00:00.00000000{ns}");
        assert_eq!(lines(&driver.sent_rows()), [format!("21|{0}|{0}", at(6)), format!("31|{0}|{0}", at(7))]);
    }

    #[test]
    fn all_rows_are_not_copied_and_no_rows_not_sent() {
        let project = |predicate| {
            let project = Project::try_new(&events(), vec![(column("s"), "s".to_owned())], Some(predicate)).unwrap();
            Driver::new(&project)
        };
        let batch = batch_of(&[event(1, 1, 1), event(2, 1, 1)]);
        for keeps_all in [expr("k", Op::Lt, 9), lit(true)] {
            let mut driver = project(keeps_all);
            driver.rows(batch.clone()).unwrap();
            assert!(Arc::ptr_eq(driver.sent_batches()[0].column(0), batch.column(1)));
        }
        for keeps_none in [expr("k", Op::Gt, 9), lit(false), lit(ScalarValue::Boolean(None))] {
            let mut driver = project(keeps_none);
            driver.rows(batch.clone()).unwrap();
            assert!(driver.sent_batches().is_empty());
        }
    }

    #[test]
    fn a_projection_may_have_no_columns() {
        let mut driver = Driver::new(&Project::try_new(&events(), vec![], Some(expr("k", Op::Gt, 1))).unwrap());
        driver.rows(batch_of(&[event(1, 1, 1), event(2, 1, 1)])).unwrap();
        assert_eq!(driver.sent_rows().num_rows(), 1);
    }

    #[test]
    fn retractions_meet_the_predicate_as_their_rows_do() {
        let input = StreamSchema::new(events().visible().to_vec(), StreamKind::Updating).unwrap();
        let project =
            Project::try_new(&input, vec![(column("k"), "k".to_owned())], Some(expr("v", Op::Gt, 5))).unwrap();
        assert!(project.output().unwrap().is_updating());
        let mut columns =
            batch_of(&[event(1, 3, 1), event(1, 7, 2), event(1, 7, 2), event(1, 9, 3)]).columns().to_vec();
        columns.push(Arc::new(BooleanArray::from(vec![false, false, true, false])));
        let mut driver = Driver::new(&project);
        driver.rows(RecordBatch::try_new(Arc::clone(input.schema()), columns).unwrap()).unwrap();
        let retract: Vec<_> = driver.sent_rows().column(2).as_boolean().iter().flatten().collect();
        assert_eq!(retract, [false, true, false]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = Project::try_new(&events(), vec![], Some(column("k"))).unwrap_err().to_string();
        assert!(refused.contains("k@0") && refused.contains("Int64"), "{refused}");
        let refused = Project::try_new(&events(), vec![(column("k"), "_timestamp".to_owned())], None).unwrap_err();
        assert!(matches!(refused, NodeError::Schema(_)), "{refused}");
    }

    #[test]
    fn a_row_that_cannot_be_computed_is_the_users_to_mend() {
        let divide = Arc::new(BinaryExpr::new(lit(1i64), Op::Divide, column("v")));
        let mut driver = Driver::new(&Project::try_new(&events(), vec![(divide, "d".to_owned())], None).unwrap());
        let error = driver.rows(batch_of(&[event(1, 0, 1)])).unwrap_err();
        assert_eq!(error.fault, crate::runtime::Fault::User);
        assert!(error.to_string().contains("ivide by zero"), "{error}");
    }

    proptest! {
        #[test]
        fn gives_what_the_batch_engine_gives(events in random_events(100), lengths in lengths(), bound in -60..60i64) {
            let exprs = vec![(column("s"), "s".to_owned()), (expr("v", Op::Plus, bound), "w".to_owned())];
            let mut driver = Driver::new(&Project::try_new(&self::events(), exprs, Some(expr("v", Op::Lt, bound))).unwrap());
            for run in cut(&events, &lengths) {
                driver.rows(batch_of(run)).unwrap();
            }
            let sql = format!("SELECT s, v + {bound}, _timestamp FROM events WHERE v < {bound}");
            prop_assert_eq!(sorted(lines(&driver.sent_rows())), oracle(batch_of(&events), &sql));
        }
    }
}

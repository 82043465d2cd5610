//! Aggregate UDFs as DataFusion aggregates.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, new_empty_array};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature};

use super::scalar::signature;
use super::{Udf, UdfArg};

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct PluginAggregate {
    udf: Arc<Udf>,
    signature: Signature,
}

impl PluginAggregate {
    pub(super) fn new(udf: Arc<Udf>) -> Self {
        let signature = signature(&udf);
        Self { udf, signature }
    }
}

impl AggregateUDFImpl for PluginAggregate {
    fn name(&self) -> &str {
        &self.udf.spec().name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.udf.spec().result.clone())
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Group { udf: Arc::clone(&self.udf), values: vec![Vec::new(); self.udf.spec().args.len()] }))
    }

    /// One list per argument.
    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let field = |arg: &UdfArg| {
            let item = Field::new_list_field(arg.data_type.clone(), true);
            Arc::new(Field::new_list(format_state_name(args.name, &arg.name), item, true))
        };
        Ok(self.udf.spec().args.iter().map(field).collect())
    }
}

/// The values of one group, per argument.
#[derive(Debug)]
struct Group {
    udf: Arc<Udf>,
    values: Vec<Vec<ArrayRef>>,
}

impl Group {
    /// The values of each argument as one column.
    fn columns(&self) -> Result<Vec<ArrayRef>> {
        let column = |(chunks, arg): (&Vec<ArrayRef>, &UdfArg)| {
            let chunks: Vec<&dyn Array> = chunks.iter().map(AsRef::as_ref).collect();
            Ok(if chunks.is_empty() { new_empty_array(&arg.data_type) } else { concat(&chunks)? })
        };
        self.values.iter().zip(&self.udf.spec().args).map(column).collect()
    }
}

impl Accumulator for Group {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for (chunks, column) in self.values.iter_mut().zip(values) {
            chunks.push(Arc::clone(column));
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let spec = self.udf.spec();
        let result = self.udf.library().run(spec, &self.columns()?, 1)?;
        ScalarValue::try_from_array(&result, 0)
    }

    fn size(&self) -> usize {
        let arrays = self.values.iter().flatten().map(|array| array.get_array_memory_size()).sum::<usize>();
        size_of_val(self) + arrays
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let list = |column| SingleRowListArrayBuilder::new(column).with_nullable(true).build_list_scalar();
        Ok(self.columns()?.into_iter().map(list).collect())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for (chunks, lists) in self.values.iter_mut().zip(states) {
            let Some(lists) = lists.as_list_opt::<i32>() else {
                return internal_err!("the state of the UDF {} is not a list", self.udf.spec().name);
            };
            chunks.extend(lists.iter().flatten());
        }
        Ok(())
    }
}

//! Scalar UDFs as DataFusion functions, and the placeholders of async ones.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, exec_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use super::{Udf, UdfError, UdfKind};

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct PluginScalar {
    udf: Arc<Udf>,
    signature: Signature,
}

impl PluginScalar {
    pub(super) fn new(udf: Arc<Udf>) -> Self {
        let signature = signature(&udf);
        Self { udf, signature }
    }
}

/// The arguments as DataFusion coerces them.
pub(super) fn signature(udf: &Udf) -> Signature {
    let types: Vec<DataType> = udf.spec().args.iter().map(|arg| arg.data_type.clone()).collect();
    let types = if types.is_empty() { TypeSignature::Nullary } else { TypeSignature::Exact(types) };
    Signature::new(types, Volatility::Volatile)
}

impl ScalarUDFImpl for PluginScalar {
    fn name(&self) -> &str {
        &self.udf.spec().name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.udf.spec().result.clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let spec = self.udf.spec();
        let null_in = args.arg_fields.iter().zip(&spec.args).any(|(field, arg)| field.is_nullable() && !arg.nullable);
        Ok(Arc::new(Field::new(self.name(), spec.result.clone(), spec.nullable || null_in)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let spec = self.udf.spec();
        if matches!(spec.kind, UdfKind::Async { .. }) {
            return exec_err!("the async UDF {} can be called only as a column of a SELECT list", spec.name);
        }
        let rows = args.number_rows;
        let columns = args.args.into_iter().zip(&spec.args).map(|(value, arg)| {
            let column = value.into_array(rows)?;
            // Planning has coerced the types; DataFusion may still pass views of texts.
            Ok(if column.data_type() == &arg.data_type { column } else { cast(&column, &arg.data_type)? })
        });
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        Ok(ColumnarValue::Array(self.udf.library().run(spec, &columns, rows)?))
    }
}

impl From<UdfError> for DataFusionError {
    fn from(error: UdfError) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

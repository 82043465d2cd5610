//! Holds a query to a column that is declared NOT NULL.

use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

/// `expr`, with an error for a row where it is null. `column` names the declared column in the message.
pub(in crate::sql) fn not_null(expr: Expr, column: String) -> Expr {
    // Volatile, so that no rule moves the check to rows that a filter drops.
    let signature = Signature::any(1, Volatility::Volatile);
    ScalarUDF::from(NotNull { column, signature }).call(vec![expr])
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct NotNull {
    column: String,
    signature: Signature,
}

impl ScalarUDFImpl for NotNull {
    fn name(&self) -> &str {
        "not_null"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        types.first().cloned().ok_or_else(|| DataFusionError::Internal("not_null takes one argument".into()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<_> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, false)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let nulls = |value: &ColumnarValue| match value {
            ColumnarValue::Array(array) => array.logical_null_count() > 0,
            ColumnarValue::Scalar(scalar) => scalar.is_null(),
        };
        match args.args.pop() {
            Some(value) if !nulls(&value) => Ok(value),
            Some(_) => Err(DataFusionError::Execution(format!(
                "the column `{}` is declared NOT NULL, and the query gave a NULL for it; filter such rows out, give them a value \
                 with coalesce(), or remove NOT NULL",
                self.column
            ))),
            None => Err(DataFusionError::Internal("not_null takes one argument".into())),
        }
    }
}

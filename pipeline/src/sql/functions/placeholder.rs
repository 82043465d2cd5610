//! Functions that stand in a logical plan for something an operator computes. Evaluating one is an error of the planner.
//!
//! All are volatile, so that no rule folds, merges or moves them.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, IntervalUnit, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use crate::runtime::AsyncFunction;

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, None)
}

fn not_evaluated<T>(name: &str) -> Result<T> {
    Err(DataFusionError::Internal(format!("`{name}` was left in an expression")))
}

/// `tumble(width)`: the window of a row, computed by the window's aggregate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(in crate::sql) struct Tumble {
    signature: Signature,
}

impl Default for Tumble {
    fn default() -> Self {
        let interval = DataType::Interval(IntervalUnit::MonthDayNano);
        Self { signature: Signature::exact(vec![interval], Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for Tumble {
    fn name(&self) -> &str {
        "tumble"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        let bound = |name| Field::new(name, timestamp(), false);
        Ok(DataType::Struct(Fields::from(vec![bound("start"), bound("end")])))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<_> = args.arg_fields.iter().map(|f| f.data_type().clone()).collect();
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, false)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        not_evaluated(self.name())
    }
}

/// The length of a literal interval, or what is wrong with it; `what` is what it is for.
pub(in crate::sql) fn interval(what: &str, expr: Option<&Expr>) -> std::result::Result<Duration, String> {
    let Some(Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(length)), _)) = expr else {
        return Err(format!("{what} must be an interval that is written out"));
    };
    if length.months != 0 {
        return Err(format!("{what} cannot be in months or years: they differ in length"));
    }
    let nanos = i64::from(length.days).checked_mul(86_400_000_000_000).and_then(|d| d.checked_add(length.nanoseconds));
    match nanos.map(u64::try_from) {
        Some(Ok(nanos)) if nanos > 0 => Ok(Duration::from_nanos(nanos)),
        Some(_) => Err(format!("{what} must be above zero")),
        None => Err(format!("{what} is too long")),
    }
}

/// `row_time()`: the row's event time, a hidden column.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(in crate::sql) struct RowTime {
    signature: Signature,
}

impl Default for RowTime {
    fn default() -> Self {
        Self { signature: Signature::new(TypeSignature::Nullary, Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for RowTime {
    fn name(&self) -> &str {
        "row_time"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(timestamp())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), timestamp(), false)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        not_evaluated(self.name())
    }
}

/// A call of an async UDF, made by an operator of its own.
#[derive(Debug)]
pub(in crate::sql) struct AsyncCall {
    /// The function that is called.
    pub(in crate::sql) function: Arc<dyn AsyncFunction>,
    signature: Signature,
}

impl AsyncCall {
    pub(super) fn new(function: Arc<dyn AsyncFunction>) -> Self {
        let signature = match function.argument_types() {
            [] => Signature::new(TypeSignature::Nullary, Volatility::Volatile),
            types => Signature::exact(types.to_vec(), Volatility::Volatile),
        };
        Self { function, signature }
    }
}

impl PartialEq for AsyncCall {
    fn eq(&self, other: &Self) -> bool {
        self.function.name() == other.function.name()
    }
}

impl Eq for AsyncCall {}

impl Hash for AsyncCall {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.name().hash(state);
    }
}

impl ScalarUDFImpl for AsyncCall {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.function.result_type().clone())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs) -> Result<FieldRef> {
        let result = self.function.result_type().clone();
        Ok(Arc::new(Field::new(self.name(), result, self.function.is_nullable())))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        not_evaluated(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(months: i32, days: i32, nanos: i64) -> std::result::Result<Duration, String> {
        let value = ScalarValue::new_interval_mdn(months, days, nanos);
        interval("the width", Some(&Expr::Literal(value, None)))
    }

    #[test]
    fn a_width_is_days_and_nanoseconds() {
        assert_eq!(width(0, 1, 5), Ok(Duration::new(86_400, 5)));
        assert!(width(1, 0, 0).unwrap_err().contains("months"));
        assert!(width(0, 0, 0).unwrap_err().contains("above zero"));
        assert!(width(0, 0, -5).unwrap_err().contains("above zero"));
        assert!(width(0, i32::MAX, 0).unwrap_err().contains("too long"));
    }
}

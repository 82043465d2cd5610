//! `extract_json`, `extract_json_string`, `get_first_json_object`: JSONPath over text, as Arroyo has them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListBuilder, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::json_path::JsonPath;

/// What a function makes of the matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// The JSON text of each, in a list.
    All,
    /// The first, when it is a string: its text without quotes.
    FirstString,
    /// The JSON text of the first.
    First,
}

/// A function of a document and a path. A null document, or one that is not JSON, gives null.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ExtractJson {
    name: &'static str,
    kind: Kind,
    signature: Signature,
}

/// The functions of this module.
pub(super) fn all() -> impl Iterator<Item = Arc<ScalarUDF>> {
    let functions = [
        ("extract_json", Kind::All),
        ("extract_json_string", Kind::FirstString),
        ("get_first_json_object", Kind::First),
    ];
    functions.into_iter().map(|(name, kind)| {
        let signature = Signature::exact(vec![DataType::Utf8, DataType::Utf8], Volatility::Immutable);
        Arc::new(ScalarUDF::from(ExtractJson { name, kind, signature }))
    })
}

impl ExtractJson {
    fn path(&self, argument: Option<&ScalarValue>) -> Result<JsonPath> {
        match argument.and_then(|value| value.try_as_str()) {
            Some(Some(path)) => JsonPath::parse(path),
            _ => Err(DataFusionError::Plan(format!(
                "the path of '{0}' must be a literal text\nwrite it as in `{0}(column, '$.field')`",
                self.name
            ))),
        }
    }

    fn lists(path: &JsonPath, documents: &StringArray) -> ArrayRef {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for document in documents {
            let is_json = document.is_some_and(|d| path.query(d, &mut |text| lists.values().append_value(text)));
            lists.append(is_json);
        }
        Arc::new(lists.finish())
    }

    fn firsts(path: &JsonPath, documents: &StringArray, strings: bool) -> ArrayRef {
        let mut texts = StringBuilder::with_capacity(documents.len(), 0);
        for document in documents {
            let mut first = None;
            let mut keep = |text: &str| {
                first.get_or_insert_with(|| text.to_owned());
            };
            let is_json = document.is_some_and(|d| path.query(d, &mut keep));
            match first.filter(|_| is_json) {
                Some(text) if strings => texts.append_option(serde_json::from_str::<String>(&text).ok()),
                text => texts.append_option(text),
            }
        }
        Arc::new(texts.finish())
    }
}

impl ScalarUDFImpl for ExtractJson {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::All => DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
            Kind::FirstString | Kind::First => DataType::Utf8,
        })
    }

    /// Checks the path as well, so that a wrong one is refused when the pipeline is planned.
    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.path(args.scalar_arguments.get(1).copied().flatten())?;
        Ok(Arc::new(Field::new(self.name, self.return_type(&[])?, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [document, path] = args.args.as_slice() else {
            return Err(DataFusionError::Internal(format!("{} takes two arguments", self.name)));
        };
        let path = match path {
            ColumnarValue::Scalar(path) => self.path(Some(path))?,
            ColumnarValue::Array(_) => self.path(None)?,
        };
        let documents = document.to_array(args.number_rows)?;
        let documents = documents
            .as_string_opt::<i32>()
            .ok_or_else(|| DataFusionError::Internal(format!("{} was given {}", self.name, document.data_type())))?;
        Ok(ColumnarValue::Array(match self.kind {
            Kind::All => Self::lists(&path, documents),
            Kind::FirstString => Self::firsts(&path, documents, true),
            Kind::First => Self::firsts(&path, documents, false),
        }))
    }
}

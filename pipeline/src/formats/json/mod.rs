//! Newline-delimited JSON: one object per row, fields by the columns' names.

mod decode;
mod encode;

pub use decode::{BadData, Decoder, JsonError, TimestampFormat};
pub use encode::{Encoder, Shape, ShapeError};

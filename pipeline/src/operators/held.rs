//! Watermarks that have to wait.

use crate::runtime::{Context, Watermark};

/// Watermarks that came while rows before them were still to be sent. They follow those rows; of several times only the
/// last matters.
#[derive(Debug, Default)]
pub(super) struct HeldWatermarks {
    at: Option<Watermark>,
    idle: bool,
}

impl HeldWatermarks {
    pub(super) fn hold(&mut self, watermark: Watermark) {
        match watermark {
            Watermark::At(_) => *self = Self { at: Some(watermark), idle: false },
            Watermark::Idle => self.idle = true,
        }
    }

    pub(super) fn release(&mut self, cx: &mut Context<'_>) {
        if let Some(watermark) = self.at.take() {
            cx.emit_watermark(watermark);
        }
        if std::mem::take(&mut self.idle) {
            cx.emit_watermark(Watermark::Idle);
        }
    }
}

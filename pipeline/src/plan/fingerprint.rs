//! What makes two nodes the same.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{Exchange, NodePlan};

/// Identifies what a node computes: its kind, its details, its output and, through its inputs, all that is above it.
///
/// Stable across runs and machines. Saved state belongs to a fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of `plan`, named `label` by the user, over inputs with these fingerprints.
    pub fn of<P: NodePlan + ?Sized>(label: Option<&str>, plan: &P, inputs: &[(Fingerprint, &Exchange)]) -> Self {
        let mut hasher = Sha256::new();
        // Each part ends in a byte that no text holds, so that no two lists of parts run together alike.
        let mut part = |text: &str| {
            hasher.update(text.as_bytes());
            hasher.update([0xff]);
        };
        part(label.unwrap_or_default());
        part(plan.kind());
        for (label, value) in plan.details() {
            part(label);
            part(&value);
        }
        if let Some(output) = plan.output() {
            for field in output.schema().fields() {
                part(&format!("{} {} {}", field.name(), field.data_type(), field.is_nullable()));
            }
        }
        for (input, exchange) in inputs {
            part(&format!("{input} {exchange:?}"));
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize()[..16]);
        Self(short)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

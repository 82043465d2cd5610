//! `later(BIGINT) -> BIGINT`: twice the argument, after a time that depends on it.

use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tickhouse::runtime::{AsyncCalls, AsyncFunction, Clock, OperatorError, Subtask};

#[derive(Debug)]
pub struct Later;

impl AsyncFunction for Later {
    fn name(&self) -> &str {
        "later"
    }

    fn argument_types(&self) -> &[DataType] {
        &[DataType::Int64]
    }

    fn result_type(&self) -> &DataType {
        &DataType::Int64
    }

    fn is_nullable(&self) -> bool {
        true
    }

    fn is_ordered(&self) -> bool {
        false
    }

    fn max_in_flight(&self) -> usize {
        6
    }

    fn start(&self, subtask: &Subtask) -> Result<Box<dyn AsyncCalls>, OperatorError> {
        Ok(Box::new(LaterCalls { clock: subtask.clock, calls: FuturesUnordered::new() }))
    }
}

struct LaterCalls {
    clock: Clock,
    calls: FuturesUnordered<BoxFuture<'static, (u64, Option<i64>)>>,
}

impl AsyncCalls for LaterCalls {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), OperatorError>> {
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, id: u64, args: &[ArrayRef], row: usize) -> Result<(), OperatorError> {
        let numbers = args[0].as_primitive::<Int64Type>();
        let number = numbers.is_valid(row).then(|| numbers.value(row));
        let (clock, wait) = (self.clock, Duration::from_millis(number.unwrap_or(0).unsigned_abs() % 40));
        let due = clock.now().after(wait);
        self.calls.push(
            async move {
                clock.sleep_until(due).await;
                (id, number.map(|number| number * 2))
            }
            .boxed(),
        );
        Ok(())
    }

    fn poll_results(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(Vec<u64>, ArrayRef), OperatorError>> {
        match self.calls.poll_next_unpin(task) {
            Poll::Ready(Some((id, number))) => {
                let result: ArrayRef = Arc::new(Int64Array::from(vec![number]));
                Poll::Ready(Ok((vec![id], result)))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

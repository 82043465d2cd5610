//! Instances of async UDFs: order, limits, failures, life and death.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Float64Array, Int16Array, Int64Array, StringArray};
use arrow::datatypes::Int64Type;
use futures::poll;

use super::{call_all, call_all_int64, int64, udf};
use crate::udf::{AsyncUdf, UdfError};

const ROWS: usize = 10_000;

/// Sends calls without draining, and gives the error with which the instance stops.
async fn last_words(instance: &mut AsyncUdf, millis: &[i64]) -> String {
    let args = [int64(&vec![1; millis.len()]), int64(millis)];
    for row in 0..millis.len() {
        // It may stop while rows are still being sent.
        let sent = match instance.ready().await {
            Ok(()) => instance.send(row as u64, &args, row),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            return error.to_string();
        }
    }
    loop {
        match instance.drain().await {
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

#[tokio::test]
async fn each_call_is_answered_once_under_its_own_id() {
    let mut instance = udf("test_later").start().unwrap();
    let millis: Vec<i64> = (0..ROWS as i64).map(|n| n % 7).collect();
    let args = [int64(&(0..ROWS as i64).map(|n| n * 3).collect::<Vec<_>>()), int64(&millis)];
    let mut answers = call_all_int64(&mut instance, &args).await;
    assert!(!answers.is_sorted(), "unordered calls of different lengths do not finish in order");
    answers.sort_unstable();
    let expected: Vec<_> = (0..ROWS as u64).map(|n| (n, Some(n as i64 * 3))).collect();
    assert_eq!(answers, expected);
    assert_eq!(instance.in_flight(), 0);
    assert!(poll!(std::pin::pin!(instance.drain())).is_pending());
}

#[tokio::test]
async fn ordered_calls_are_answered_in_order_and_nulls_keep_their_place() {
    let mut instance = udf("test_later_ordered").start().unwrap();
    let millis: Vec<i64> = (0..300).map(|n| (n % 5) * 3).collect();
    let x: Vec<Option<i64>> = (0..300).map(|n| (n % 3 != 1).then_some(n)).collect();
    let args = [Arc::new(Int64Array::from(x.clone())) as ArrayRef, int64(&millis)];
    let answers = call_all_int64(&mut instance, &args).await;
    let expected: Vec<_> = x.into_iter().enumerate().map(|(n, x)| (n as u64, x)).collect();
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn optional_arguments_of_all_kinds_arrive() {
    let mut instance = udf("test_describe").start().unwrap();
    let args: [ArrayRef; 4] = [
        Arc::new(StringArray::from(vec![Some("a\"ü"), None, Some("null")])),
        Arc::new(Float64Array::from(vec![Some(-0.5), None, None])),
        Arc::new(BinaryArray::from(vec![Some(b"\x01\x02".as_slice()), None, None])),
        Arc::new(Int16Array::from(vec![Some(-7), None, None])),
    ];
    let mut answers = call_all(&mut instance, &args).await;
    answers.sort_by_key(|(id, _)| *id);
    let texts: Vec<_> = answers.iter().map(|(_, r)| r.is_valid(0).then(|| r.as_string::<i32>().value(0))).collect();
    let first = r#"Some("a\"ü") Some(-0.5) Some([1, 2]) Some(-7)"#;
    assert_eq!(texts, [Some(first), Some("None None None None"), None]);
}

#[tokio::test]
async fn a_udf_without_arguments_is_called() {
    let mut instance = udf("test_no_arguments").start().unwrap();
    for id in 0..3 {
        instance.ready().await.unwrap();
        instance.send(id, &[], 0).unwrap();
    }
    let (mut ids, mut counts) = (Vec::new(), Vec::new());
    while ids.len() < 3 {
        let finished = instance.drain().await.unwrap();
        ids.extend(finished.ids);
        counts.extend(finished.results.as_primitive::<Int64Type>().values().iter().copied());
    }
    ids.sort_unstable();
    counts.sort_unstable();
    assert_eq!((ids, counts), (vec![0, 1, 2], vec![1, 2, 3]));
}

#[tokio::test]
async fn the_limit_of_calls_in_flight_pushes_back() {
    let mut instance = udf("test_later_ordered").start().unwrap();
    let args = [int64(&[1]), int64(&[100])];
    for id in 0..64 {
        instance.ready().await.unwrap();
        instance.send(id, &args, 0).unwrap();
    }
    assert_eq!(instance.in_flight(), 64);
    let refused = instance.send(64, &args, 0).unwrap_err();
    assert!(matches!(refused, UdfError::Misuse { .. }), "{refused}");
    let began = Instant::now();
    let wait = std::future::poll_fn(|cx| match instance.poll_ready(cx) {
        Poll::Ready(ready) => Poll::Ready(ready.map(|()| 0)),
        Poll::Pending => instance.poll_drain(cx).map(|r| r.map(|finished| finished.ids.len())),
    });
    let drained = wait.await.unwrap();
    assert!(drained > 0 && began.elapsed() >= Duration::from_millis(50), "{drained} after {:?}", began.elapsed());
    instance.ready().await.expect("a drain makes room");
}

#[tokio::test]
async fn dropped_futures_lose_nothing() {
    let mut instance = udf("test_later").start().unwrap();
    let args = [int64(&[7; 500]), int64(&[1; 500])];
    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < 500 {
        // Each round polls both futures once at most a few times and drops them.
        let cut = tokio::time::timeout(Duration::from_micros(300), instance.ready()).await;
        if let Ok(ready) = cut
            && sent < 500
        {
            ready.unwrap();
            instance.send(sent, &args, sent as usize).unwrap();
            sent += 1;
        }
        if let Ok(finished) = tokio::time::timeout(Duration::from_micros(300), instance.drain()).await {
            got.extend(finished.unwrap().ids);
        }
    }
    got.sort_unstable();
    assert_eq!(got, (0..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_panic_stops_the_instance_soon_with_calls_under_way() {
    for name in ["test_later", "test_later_ordered"] {
        let mut instance = udf(name).start().unwrap();
        let began = Instant::now();
        let error = last_words(&mut instance, &[500, 500, -1, 500]).await;
        assert!(error.contains(&format!("the UDF {name} has stopped with ")), "{error}");
        assert!(error.contains("a call panicked"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        // It stays stopped, for every method.
        assert!(instance.send(9, &[int64(&[1]), int64(&[0])], 0).is_err());
        assert!(instance.ready().await.is_err());
    }
}

#[tokio::test]
async fn a_send_to_a_dead_instance_fails_at_once() {
    let mut instance = udf("test_later").start().unwrap();
    let args = [int64(&[1, 1]), int64(&[-1, 0])];
    instance.send(0, &args, 0).unwrap();
    let began = Instant::now();
    let error = loop {
        let sent = match instance.ready().await {
            Ok(()) => instance.send(1, &args, 1),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            break error.to_string();
        }
    };
    assert!(error.contains("the UDF test_later has stopped"), "{error}");
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_call_that_outlives_the_timeout_stops_the_instance() {
    for name in ["test_later", "test_later_ordered"] {
        let mut instance = udf(name).start().unwrap();
        let began = Instant::now();
        let error = last_words(&mut instance, &[5_000]).await;
        assert!(error.contains("with 1 calls under way: a call took longer than the UDF's timeout of 1s"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_blocked_thread_is_noticed() {
    let mut instance = udf("test_later").start().unwrap();
    let began = Instant::now();
    let error = last_words(&mut instance, &[-2]).await;
    assert!(error.contains("it seems to block its thread"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_of_one_library_run_side_by_side() {
    let udf = udf("test_later");
    let tasks = (0..4).map(|n| {
        let udf = Arc::clone(&udf);
        tokio::spawn(async move {
            let mut instance = udf.start().unwrap();
            let args = [int64(&vec![n; 1000]), int64(&(0..1000).map(|n| n % 3).collect::<Vec<_>>())];
            call_all_int64(&mut instance, &args).await.into_iter().all(|(_, x)| x == Some(n))
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        assert!(task.await.unwrap(), "an instance was given another's result");
    }
    // One that dies leaves the others alone.
    let (mut dying, mut living) = (udf.start().unwrap(), udf.start().unwrap());
    last_words(&mut dying, &[-1]).await;
    assert_eq!(call_all_int64(&mut living, &[int64(&[5]), int64(&[0])]).await, [(0, Some(5))]);
}

/// Threads of this process, by the system's count.
#[cfg(target_os = "linux")]
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dropped_instance_ends_its_thread() {
    let udf = udf("test_later");
    let mut instances: Vec<_> = (0..100).map(|_| udf.start().unwrap()).collect();
    let with = threads();
    for instance in &mut instances {
        instance.send(0, &[int64(&[1]), int64(&[900])], 0).unwrap();
    }
    drop(instances);
    let deadline = Instant::now() + Duration::from_secs(5);
    while threads() > with - 60 {
        assert!(Instant::now() < deadline, "{} threads of {with} are left", threads());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn calls_that_do_not_fit_are_refused() {
    let mut instance = udf("test_later").start().unwrap();
    let refused = |result: Result<(), UdfError>| result.unwrap_err().to_string();
    let wrong = [int64(&[1]), Arc::new(StringArray::from(vec!["a"])) as ArrayRef];
    let message = refused(instance.send(0, &wrong, 0));
    assert!(message.contains("called with (Int64, Utf8), but takes (Int64, Int64)"), "{message}");
    assert!(refused(instance.send(0, &[int64(&[1])], 0)).contains("called with (Int64)"));
    assert!(refused(instance.send(0, &[int64(&[1]), int64(&[1])], 1)).contains("a row that is not there"));
    assert_eq!(call_all_int64(&mut instance, &[int64(&[5]), int64(&[0])]).await, [(0, Some(5))]);
}

/// The instance's thread and the task hand rows over in turns: whoever comes second leaves it to the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_left_behind_however_the_threads_meet() {
    const CALLS: i64 = 100_000;
    let udf = udf("test_later");
    let tasks = [0, 1].map(|n| {
        let udf = Arc::clone(&udf);
        tokio::spawn(async move {
            let mut instance = udf.start().unwrap();
            // Most return at once; some are waited for.
            let millis: Vec<i64> = (0..CALLS).map(|call| i64::from(call % (97 + n) == 0)).collect();
            let args = [int64(&(0..CALLS).collect::<Vec<_>>()), int64(&millis)];
            call_all_int64(&mut instance, &args).await
        })
    });
    for task in tasks {
        let mut answers = tokio::time::timeout(Duration::from_secs(60), task).await.expect("it goes on").unwrap();
        answers.sort_unstable();
        assert!(answers.into_iter().eq((0..CALLS).map(|n| (n as u64, Some(n)))));
    }
}

/// Rows are on their way, and others wait, when the instance dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_among_many_calls_stops_the_instance_soon() {
    for name in ["test_later", "test_later_ordered"] {
        for before in [0, 1, 2, 50, 700] {
            let mut instance = udf(name).start().unwrap();
            let mut millis = vec![20; before];
            millis.push(-1);
            millis.resize(3_000, 20);
            let args = [int64(&vec![1; millis.len()]), int64(&millis)];
            let call = async {
                for row in 0..millis.len() {
                    let wait = std::future::poll_fn(|cx| match instance.poll_ready(cx) {
                        Poll::Ready(ready) => Poll::Ready(ready),
                        Poll::Pending => instance.poll_drain(cx).map(|drained| drained.map(|_| ())),
                    });
                    wait.await?;
                    if poll!(std::pin::pin!(instance.ready())).is_ready() {
                        instance.send(row as u64, &args, row)?;
                    }
                }
                loop {
                    instance.drain().await?;
                }
            };
            let stopped: Result<(), UdfError> =
                tokio::time::timeout(Duration::from_secs(10), call).await.expect("it stops");
            let error = stopped.unwrap_err().to_string();
            assert!(error.contains("a call panicked"), "{name} after {before}: {error}");
        }
    }
}

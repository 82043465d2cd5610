//! Saved state that was damaged, and disks that are full or read-only: the pipeline says what is wrong and where, or goes on
//! exactly. It never writes a wrong row.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tickhouse_tests::{
    InfluencerJob, Output, Program, Served, SmallDisk, Stack, StackOptions, Tables, assert_none, eventually,
};

const INFLUENCERS: u64 = 50;
/// In seconds.
const WINDOW: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(40);

/// The influencer pipeline, run on one state directory or another.
struct Scene {
    stack: Stack,
}

impl Scene {
    async fn new() -> Self {
        let stack = Stack::start(&StackOptions { mockstagram: vec!["--seed".into(), "31".into()] });
        let bootstrap = stack.bootstrap(INFLUENCERS);
        assert_eq!(bootstrap.code, Some(0), "{}", bootstrap.stderr);
        stack.set(json!({"malformed_rate": 0.05})).await;
        Self { stack }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.stack.folder().join(name)
    }

    fn start(&self, state: &Path) -> Program {
        InfluencerJob::every(&format!("{WINDOW} seconds"))
            .parallelism(2)
            .checkpoint_interval("500ms")
            .state_dir(state)
            .start(&self.stack)
    }

    /// Waits until rows of minutes are in ClickHouse that were not when this was called.
    async fn new_rows(&self, minutes: u64) {
        let sql = "SELECT uniqExact(minute) FROM follower_timeline";
        let before = self.stack.value::<u64>(sql).await;
        let meaning = format!("rows of {minutes} more minutes than {before}");
        eventually(&meaning, PATIENCE, || async { self.stack.value::<u64>(sql).await >= before + minutes }).await;
    }

    /// Runs until rows of another minute are in ClickHouse, and kills it there and then: going back to the checkpoint before
    /// would now write them a second time.
    async fn run_and_kill(&self, state: &Path) {
        // A kill may come when the next checkpoint is complete already, which has nothing to deliver.
        for _ in 0..5 {
            let pipeline = self.start(state);
            self.new_rows(2).await;
            pipeline.signal("KILL");
            pipeline.ended();
            // An INSERT that was under way still comes to its end.
            tokio::time::sleep(Duration::from_secs(1)).await;
            if !Saved::newest(state).files("staged").is_empty() {
                return;
            }
        }
        panic!("the kill never came right after a checkpoint with rows to deliver");
    }

    /// Runs until rows of two more minutes are in ClickHouse, stops it cleanly and looks at every row.
    async fn run_and_stop(&self, state: &Path, what: &str) {
        let pipeline = self.start(state);
        self.new_rows(2).await;
        let stopped = pipeline.stop();
        assert_eq!(stopped.code, Some(0), "{what}: {}", stopped.stderr);
        self.assert_exact(what).await;
    }

    async fn assert_exact(&self, what: &str) {
        let tables = Tables::read(&self.stack).await;
        let mut problems = tables.problems();
        problems.extend(tables.out_of_time(WINDOW));
        problems.extend(Served::ask(&self.stack).await.not_served(&tables));
        assert_none(&problems, what);
        assert!(!tables.timeline.is_empty() && !tables.dead_letters.is_empty(), "{what}: the run proves nothing");
    }

    /// Runs on `state`, which must be refused; `names` is what the message has to name.
    async fn assert_refused(&self, state: &Path, names: &Path, what: &str) {
        let pipeline = self.start(state);
        let ran = pipeline.wait_for(InfluencerJob::RUNS, PATIENCE).is_some();
        assert!(!ran, "{what}: it runs:\n{}", pipeline.stop().stderr);
        assert_failed(&pipeline.ended(), names, what);
    }
}

/// Exit code 1, and one message that names `names`.
fn assert_failed(output: &Output, names: &Path, what: &str) {
    let said = &output.stderr;
    assert_eq!(output.code, Some(1), "{what}:\n{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{what}:\n{said}");
    let message = &said[said.find("error: ").unwrap_or(0)..];
    assert!(message.contains(&names.display().to_string()), "{what}: the message does not name {names:?}:\n{said}");
    assert!(!said.contains("panicked"), "{what}:\n{said}");
}

/// A checkpoint on the disk.
struct Saved {
    state: PathBuf,
    manifest: PathBuf,
    content: Value,
}

impl Saved {
    /// The newest one in `state`.
    fn newest(state: &Path) -> Self {
        let files = fs::read_dir(state.join("checkpoints")).expect("the pipeline has saved checkpoints");
        let files = files.map(|entry| entry.expect("a folder that can be read").path());
        let manifests = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let manifest = manifests.max().expect("there is a checkpoint");
        let text = fs::read_to_string(&manifest).expect("a manifest is text");
        let content = serde_json::from_str(text.lines().next().unwrap_or_default()).expect("its first line is JSON");
        Self { state: state.to_owned(), manifest, content }
    }

    fn epoch(&self) -> u64 {
        self.content["epoch"].as_u64().expect("a checkpoint has a number")
    }

    /// Its files of rows under `kind`: `tables` of operators, or what is `staged` for the sinks.
    fn files(&self, kind: &str) -> Vec<PathBuf> {
        fn paths(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("path").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|value| paths(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| paths(value, found)),
                _ => {}
            }
        }
        let nodes = self.content["nodes"].as_array().expect("a checkpoint is of nodes");
        let subtasks = nodes.iter().flat_map(|node| node["subtasks"].as_array().into_iter().flatten());
        let mut found = Vec::new();
        subtasks.for_each(|subtask| paths(&subtask[kind], &mut found));
        found.into_iter().map(|path| self.state.join(path)).collect()
    }
}

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    FirstByte,
    MiddleByte,
    LastByte,
    Half,
    Emptied,
    Removed,
}

impl Damage {
    const ALL: [Self; 6] =
        [Self::FirstByte, Self::MiddleByte, Self::LastByte, Self::Half, Self::Emptied, Self::Removed];

    fn to(self, file: &Path) {
        let mut bytes = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let length = bytes.len();
        assert!(length > 0, "{} is empty", file.display());
        match self {
            Self::FirstByte => bytes[0] ^= 0x10,
            Self::MiddleByte => bytes[length / 2] ^= 0x10,
            Self::LastByte => bytes[length - 1] ^= 0x10,
            Self::Half => bytes.truncate(length / 2),
            Self::Emptied => bytes.clear(),
            Self::Removed => return fs::remove_file(file).expect("a file that is there"),
        }
        fs::write(file, bytes).expect("a file that can be written");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder that can be read") {
        let path = entry.expect("a folder that can be read").path();
        let target = to.join(path.file_name().expect("an entry has a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a file that can be read");
        }
    }
}

#[tokio::test]
async fn a_damaged_file_of_the_newest_checkpoint_is_refused_by_name() {
    type Pick = fn(&Saved) -> Option<PathBuf>;
    let scene = Scene::new().await;
    let state = scene.folder("state");
    scene.run_and_kill(&state).await;
    let before = Tables::read(&scene.stack).await;

    let damaged = scene.folder("damaged");
    let kinds: [(&str, Pick); 3] = [
        ("the manifest", |saved| Some(saved.manifest.clone())),
        ("rows of state", |saved| saved.files("tables").pop()),
        ("rows to be delivered", |saved| saved.files("staged").pop()),
    ];
    for (kind, file) in kinds {
        for damage in Damage::ALL {
            copy(&state, &damaged);
            let file = file(&Saved::newest(&damaged)).unwrap_or_else(|| panic!("the checkpoint has no {kind}"));
            damage.to(&file);
            scene.assert_refused(&damaged, &file, &format!("{damage:?} of {kind}, {}", file.display())).await;
            fs::remove_dir_all(&damaged).expect("our own folder");
        }
    }

    assert!(Tables::read(&scene.stack).await == before, "a run that was refused has written rows");
    scene.run_and_stop(&state, "the state that was not damaged").await;
}

/// The number of the newest checkpoint is in a file of its own, so that its manifest is missed when it is gone. While the
/// manifest is there, nothing is lost with the number.
#[tokio::test]
async fn without_the_number_of_the_newest_checkpoint_it_is_refused_or_carried_on_exactly() {
    let scene = Scene::new().await;
    let mut state = scene.folder("state");
    scene.run_and_kill(&state).await;
    for damage in [Damage::FirstByte, Damage::Half, Damage::Emptied, Damage::Removed] {
        let damaged = scene.folder(&format!("{damage:?}"));
        copy(&state, &damaged);
        let number = damaged.join("checkpoints/newest");
        damage.to(&number);
        let pipeline = scene.start(&damaged);
        if pipeline.wait_for(InfluencerJob::RUNS, PATIENCE).is_none() {
            assert_failed(&pipeline.ended(), &number, &format!("{damage:?} of the number"));
            continue;
        }
        scene.new_rows(1).await;
        let stopped = pipeline.stop();
        assert_eq!(stopped.code, Some(0), "{damage:?} of the number: {}", stopped.stderr);
        scene.assert_exact(&format!("{damage:?} of the number")).await;
        // The rows in ClickHouse are those of this state from here on.
        state = damaged;
    }
    scene.run_and_stop(&state, "the state that was not damaged").await;
}

#[tokio::test]
async fn what_was_never_completed_is_passed_over() {
    let scene = Scene::new().await;
    let state = scene.folder("state");
    scene.run_and_kill(&state).await;
    let newest = Saved::newest(&state);
    // A kill in the middle of the next checkpoint: some of its files, one of them cut short, and no manifest.
    let next = newest.epoch() + 1;
    for (number, file) in newest.files("tables").iter().enumerate() {
        let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let (_, rest) = name.split_once('-').expect("a file of rows is named after its checkpoint");
        let stray = file.with_file_name(format!("{next:012}-{rest}"));
        if !stray.exists() {
            fs::copy(file, &stray).expect("a new file");
            if number == 0 {
                Damage::Half.to(&stray);
            }
        }
    }
    fs::write(state.join(format!("checkpoints/{next:012}.json#1")), "{\"format\":1,\"pipe").expect("a new file");
    scene.run_and_stop(&state, "with files of a checkpoint that was never completed").await;
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_made_is_named() {
    let scene = Scene::new().await;
    let file = scene.stack.write("a-file", "dear");
    scene.assert_refused(&file, &file, "a file in place of the folder").await;
    let below = file.join("state");
    scene.assert_refused(&below, &below, "a folder below a file").await;
    assert_eq!(fs::read_to_string(file).expect("it is still there"), "dear");
}

#[tokio::test]
async fn a_full_disk_stops_the_pipeline_and_room_lets_it_go_on() {
    let scene = Scene::new().await;
    let Some(disk) = SmallDisk::mount(&scene.folder("disk"), "8m") else { return };
    let state = disk.path().join("state");
    let mut pipeline = scene.start(&state);
    scene.new_rows(2).await;
    let full = async {
        // Again and again: the pipeline removes old checkpoints, and would live on in the space that this leaves.
        while pipeline.runs() {
            disk.fill();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, full).await.expect("a pipeline whose disk is full ends");
    assert_failed(&pipeline.ended(), &state, "a full disk");

    disk.make_room();
    scene.run_and_stop(&state, "after the disk was full").await;
}

#[tokio::test]
async fn a_read_only_disk_is_refused_before_anything_is_written() {
    let scene = Scene::new().await;
    let Some(disk) = SmallDisk::mount(&scene.folder("disk"), "8m") else { return };
    let state = disk.path().join("state");
    disk.forbid_writing();
    scene.assert_refused(&state, &state, "a read-only disk without state").await;
    disk.allow_writing();
    scene.run_and_stop(&state, "on a disk of its own").await;

    let before = Tables::read(&scene.stack).await;
    disk.forbid_writing();
    scene.assert_refused(&state, &state, "a read-only disk with state").await;
    assert!(Tables::read(&scene.stack).await == before, "a run that was refused has written rows");
    disk.allow_writing();
    scene.run_and_stop(&state, "after the disk was read-only").await;
}

//! A process that is killed at any time loses nothing that it has acknowledged: what is found
//! afterwards is what it wrote, as far as it had said, or one promise further.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise"
)]

#[path = "../../mmfast-core/tests/reliability/figures.rs"]
mod figures;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mmfast_core::indexed::Prefix;
use mmfast_core::random::{below, philox4x32};
use mmfast_producer::{
    Kind, Word, documents, flush_points, generation_of, kind, produce, published, resume,
};

const SEED: u32 = 9;
const NUM_THREADS: u64 = 2;

/// What a producer is let to come to, and how long it lives after that at most.
const OCCASIONS: [(Occasion, Duration); 8] = [
    (Occasion::Start, Duration::from_millis(4)),
    (Occasion::Ready, Duration::from_millis(2)),
    (Occasion::Ready, Duration::from_millis(8)),
    (Occasion::Ready, Duration::from_millis(8)),
    (Occasion::Publishing, Duration::from_micros(200)),
    (Occasion::Publishing, Duration::from_micros(200)),
    (Occasion::Publishing, Duration::from_millis(1)),
    (Occasion::Publishing, Duration::from_millis(1)),
];

#[derive(Clone, Copy)]
enum Occasion {
    Start,
    Ready,
    Publishing,
}

/// What a producer has told so far.
#[derive(Debug, Default, Clone, Copy)]
struct Promised {
    /// The last generation that it said is in place.
    published: u64,
    /// Documents of the next one that it said are durable.
    acknowledged: u64,
    /// It said that this one is complete.
    is_publishing: bool,
}

impl Promised {
    fn hear(&mut self, word: Word) {
        match word {
            Word::Begun(generation, count) | Word::Acknowledged(generation, count) => {
                // It may have been put in place without a word before the last kill.
                assert!(generation == self.published + 1 || generation == self.published + 2);
                assert!(generation != self.published + 1 || count >= self.acknowledged);
                *self = Self {
                    published: generation - 1,
                    acknowledged: count,
                    is_publishing: false,
                };
            }
            Word::Ready => {}
            Word::Publishing(generation) => {
                assert_eq!(generation, self.published + 1);
                self.is_publishing = true;
            }
            Word::Published(generation) => {
                assert_eq!(generation, self.published + 1);
                *self = Self {
                    published: generation,
                    ..Self::default()
                };
            }
        }
    }
}

/// Where kills fell.
#[derive(Default)]
struct Tally {
    before_a_word: AtomicU64,
    writing: AtomicU64,
    publishing: AtomicU64,
    merging: AtomicU64,
    half_published: AtomicU64,
}

impl Tally {
    fn count(&self, last: Option<Word>) {
        let counter = match last {
            None | Some(Word::Ready) => &self.before_a_word,
            Some(Word::Publishing(generation)) if kind(generation) == Kind::Merged => &self.merging,
            Some(Word::Publishing(_)) => &self.publishing,
            Some(_) => &self.writing,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Starts a producer, kills it, and takes in what it had told.
fn run_and_kill(at: &Prefix, kill: u64, promised: &mut Promised, tally: &Tally) {
    let mut producer = Command::new(env!("CARGO_BIN_EXE_mmfast-producer"))
        .arg(at.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(producer.stdout.take().unwrap());
    let (mut told, mut complaint) = (String::new(), String::new());
    let (occasion, longest_life) = OCCASIONS[usize::try_from(kill / NUM_THREADS % 8).unwrap()];
    let awaited = match occasion {
        Occasion::Start => "",
        Occasion::Ready => "ready",
        Occasion::Publishing => "publishing",
    };
    while !told.contains(awaited) && output.read_line(&mut told).unwrap() > 0 {}
    std::thread::sleep(life(kill, longest_life));
    producer.kill().unwrap();
    output.read_to_string(&mut told).unwrap();
    let errors = producer.stderr.as_mut().unwrap();
    errors.read_to_string(&mut complaint).unwrap();
    producer.wait().unwrap();
    assert_eq!(complaint, "", "the producer met an error");
    let lines = told
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let words: Vec<_> = lines
        .map(|line| Word::parse(line.trim_end()).unwrap())
        .collect();
    for &word in &words {
        promised.hear(word);
    }
    tally.count(words.last().copied());
}

/// Looks at what a killed producer left, in a copy, so that the next one meets it untouched.
fn require_promised(at: &Prefix, promised: Promised, tally: &Tally) {
    let folder = folder();
    let from = at.path().parent().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let is_half_published = at.ready_idx().exists();
    tally
        .half_published
        .fetch_add(is_half_published.into(), Ordering::Relaxed);

    let at = Prefix::new(folder.path().join(at.path().file_name().unwrap())).unwrap();
    let found = published(&at).unwrap_or_else(|error| panic!("{promised:?}: unreadable: {error}"));
    let generation = match &found {
        Some(found) => generation_of(found).unwrap(),
        None => 0,
    };
    let is_allowed = [promised.published, promised.published + 1].contains(&generation);
    assert!(is_allowed, "{promised:?}: found generation {generation}");
    if let Some(found) = found {
        assert!(
            found == documents(generation),
            "{promised:?}: wrong documents"
        );
    }

    let next = generation + 1;
    if kind(next) != Kind::Journaled {
        return;
    }
    let promised = if generation == promised.published {
        promised
    } else {
        Promised::default()
    };
    let writer = resume(&at).unwrap_or_else(|error| panic!("{promised:?}: {error}"));
    let count = writer.written().num_documents;
    // The word of the last flush may not have got out, and publishing begins with one.
    let expected = documents(next);
    let flush_points = flush_points(next);
    let one_further = flush_points
        .iter()
        .find(|&&point| point > promised.acknowledged);
    let is_all = promised.is_publishing && count == expected.len() as u64;
    assert!(
        count == promised.acknowledged || Some(&count) == one_further || is_all,
        "{promised:?}: {count} documents found"
    );
    writer.finish().unwrap();
    let found = published(&at).unwrap().unwrap();
    let count = usize::try_from(count).unwrap();
    assert!(
        found[..] == expected[..count],
        "{promised:?}: wrong documents"
    );
}

/// A folder in memory where the system has a place for that: a kill loses nothing that was written,
/// synced or not.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn life(kill: u64, longest: Duration) -> Duration {
    let [low, high] = [kill & 0xffff_ffff, kill >> 32].map(|half| u32::try_from(half).unwrap());
    let [a, b, ..] = philox4x32([low, high, 0, 0], [SEED, 0]);
    let longest = u64::try_from(longest.as_nanos()).unwrap();
    Duration::from_nanos(below(longest, u64::from(a) << 32 | u64::from(b)))
}

fn kill_often(kills: impl Iterator<Item = u64>, tally: &Tally) {
    let folder = folder();
    let at = Prefix::new(folder.path().join("a")).unwrap();
    let mut promised = Promised::default();
    for kill in kills {
        run_and_kill(&at, kill, &mut promised, tally);
        require_promised(&at, promised, tally);
    }
    // One that is left alone goes on, and tidies up.
    let generation = promised.published;
    for _ in 0..5 {
        produce(&at, &mut |_| Ok(())).unwrap();
    }
    let found = published(&at).unwrap().unwrap();
    assert!(generation_of(&found).unwrap() >= generation + 5);
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "a.bin",
            "a.idx",
            "a.mmf",
            "a.part.bin",
            "a.part.idx",
            "a.part.mmf"
        ]
    );
}

#[test]
fn a_process_killed_at_any_time_loses_nothing_that_it_acknowledged() {
    let num_kills = figures::scaled(150, 10_000);
    let tally = Tally::default();
    std::thread::scope(|scope| {
        let tally = &tally;
        for thread in 0..NUM_THREADS {
            let mine = (0..num_kills).filter(move |kill| kill % NUM_THREADS == thread);
            scope.spawn(move || kill_often(mine, tally));
        }
    });
    let [before, writing, publishing, merging, half] = [
        &tally.before_a_word,
        &tally.writing,
        &tally.publishing,
        &tally.merging,
        &tally.half_published,
    ]
    .map(|counter| counter.load(Ordering::Relaxed));
    let result = format!(
        "0 acknowledged documents lost, 0 phantom, 0 unreadable; {before} fell before the first word, \
         {writing} while writing, {publishing} while publishing, {merging} while merging; {half} \
         left a publication half done"
    );
    figures::report(num_kills, "kills", Some(SEED), result);
    assert!(writing > 0 && publishing + merging > 0);
}

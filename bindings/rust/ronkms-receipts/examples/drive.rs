//! Does on a book what standard input says, a command a line with fields
//! separated by tabs, and answers each with a word: for the tests that compare the
//! implementations.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use ronkms_receipts::{Book, Error, Mark, Options, Reason, Receipt};
use std::collections::HashMap;
use std::io::{self, BufRead, Write};

fn word(e: Error) -> String {
    match e {
        Error::Invalid(_) => "invalid".into(),
        Error::Rollback(Reason::Stopped) => "rollback:stopped".into(),
        Error::Rollback(Reason::Index) => "rollback:index".into(),
        Error::Rollback(Reason::Checkpoint) => "rollback:checkpoint".into(),
        Error::Rollback(Reason::Key) => "rollback:key".into(),
        Error::LogChanged(_) => "log-changed".into(),
        Error::Locked => "locked".into(),
        Error::Corrupt(_) => "corrupt".into(),
        Error::Io(e) if e.kind() == io::ErrorKind::AlreadyExists => "exists".into(),
        Error::Io(e) if e.kind() == io::ErrorKind::NotFound => "missing".into(),
        Error::Io(_) => "file error".into(),
        e => e.to_string(),
    }
}

fn main() {
    let mut book: Option<Book> = None;
    let mut marks: HashMap<String, Mark> = HashMap::new();
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let f: Vec<&str> = line.split('\t').collect();
        let number = |at: usize| f[at].parse::<u64>().unwrap();
        let done = match (f[0], &mut book) {
            ("create" | "open", _) => {
                let o = Options { max_keys: number(2) as usize };
                let opened = if f[0] == "create" { Book::create(f[1], o) } else { Book::open(f[1], o) };
                opened.map(|b| book = Some(b))
            }
            ("mark", Some(b)) => {
                marks.insert(f[1].into(), b.mark());
                Ok(())
            }
            ("check", Some(b)) => {
                let r = Receipt { log: f[3], log_index: number(4), key_seq: number(5), checkpoint_size: number(6) };
                b.check(marks[f[1]], f[2], &r)
            }
            ("accept", Some(b)) => b.accept(f[1]),
            ("forget", Some(b)) => b.forget(f[1]),
            ("save", Some(b)) => b.save(),
            ("close", _) => book.take().map_or(Ok(()), Book::close),
            _ => panic!("{line}"),
        };
        println!("{}", done.err().map_or("ok".into(), word));
        io::stdout().flush().unwrap();
    }
}

//! Remembers the receipts of a ron-kms service and refuses results that show it
//! put back to an earlier state.
//!
//! ```
//! use ronkms_receipts::{Book, Options, Receipt};
//!
//! let mut book = Book::new(Options::default())?; // or Book::open("/var/lib/app/receipts", …)
//! let mark = book.mark(); // before the request is sent
//! let receipt = Receipt { log: "ron-kms/audit/5f0c", log_index: 41, key_seq: 3, checkpoint_size: 40 };
//! book.check(mark, "acme/audit/ed25519/0190a8e2-7c3e-4f6b-9d3a-2f1e5c7b8a90", &receipt)?; // before the result is used
//! # Ok::<(), ronkms_receipts::Error>(())
//! ```
//!
//! The rules and the file are those of docs/spec/receipts.md, shared with the
//! implementations in C, Go and Python. Threads share a book in a `Mutex`, locked
//! for each call of it and not for the request.

mod file;
mod format;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::Arc;

/// How many keys a book remembers if its options do not say.
pub const DEFAULT_MAX_KEYS: usize = 100_000;
/// How many keys a book can remember.
pub const MAX_KEYS: usize = 1_000_000;
/// How many logs a book can remember.
pub const MAX_LOGS: usize = 64;

const MAX_NUMBER: u64 = i64::MAX as u64;
const MAX_ORIGIN: usize = 255;
const MAX_KID: usize = 640;

/// Where in which audit log an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt<'a> {
    /// Origin of the log.
    pub log: &'a str,
    /// Index of the operation's record, from 0.
    pub log_index: u64,
    /// Records of the key so far, from 1; 0 if no key is concerned.
    pub key_seq: u64,
    /// Records under the latest checkpoint.
    pub checkpoint_size: u64,
}

/// The rule that a rolled-back log broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Rule 4: an earlier receipt showed it.
    Stopped,
    /// Rule 5.
    Index,
    /// Rule 6.
    Checkpoint,
    /// Rule 7.
    Key,
}

/// Why a call on a book failed. After one of [`Book::check`], the result must not
/// be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A receipt, kid, origin or option of the wrong form, or an origin that cannot
    /// be accepted or forgotten.
    Invalid(&'static str),
    /// The log went back.
    Rollback(Reason),
    /// The receipt is not of the current log, which is this one. If the service
    /// began a new log, [`Book::accept`] it.
    LogChanged(Option<String>),
    /// Another process, or another book of this one, has the file open.
    Locked,
    /// The file is not a book: the line that is wrong.
    Corrupt(usize),
    /// The file could not be read or written.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Invalid(what) => write!(f, "receipts: invalid {what}"),
            Error::Rollback(reason) => write!(f, "receipts: rollback of the log ({reason:?})"),
            Error::LogChanged(Some(current)) => write!(f, "receipts: log changed from {current}"),
            Error::LogChanged(None) => write!(f, "receipts: the log was left"),
            Error::Locked => write!(f, "receipts: the file is open elsewhere"),
            Error::Corrupt(line) => write!(f, "receipts: corrupt file, line {line}"),
            Error::Io(e) => write!(f, "receipts: {e}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(e) => Some(e),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Error::Io(e)
    }
}

/// The choices of a book.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many keys are remembered, from 1 to [`MAX_KEYS`].
    pub max_keys: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { max_keys: DEFAULT_MAX_KEYS }
    }
}

/// What a [`Book`] knew before a request was sent. The default knows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    generation: u64,
    next: u64,
    size: u64,
}

#[derive(Debug)]
struct Log {
    origin: String,
    stopped: bool, // only of the current one
    size: u64,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Key {
    seq: u64,
    index: u64,
    rose: u64, // its place in Book::order
}

/// What is remembered of one service.
///
/// A book from [`Book::create`] or [`Book::open`] has a file. Dropping it unlocks
/// the file without saving; [`Book::close`] saves.
#[derive(Debug)]
pub struct Book {
    file: Option<file::Locked>,
    max_keys: usize,
    logs: Vec<Log>, // in the order in which they came to be known
    current: Option<usize>,
    keys: HashMap<Arc<str>, Key>,
    order: BTreeMap<u64, Arc<str>>, // rose longest ago first
    ticks: u64,
    generation: u64, // counts changes of the current log by the user
    changed: bool,
}

impl Book {
    /// Returns an empty book in memory. Fails with [`Error::Invalid`].
    pub fn new(o: Options) -> Result<Book, Error> {
        if o.max_keys == 0 || o.max_keys > MAX_KEYS {
            return Err(Error::Invalid("max_keys"));
        }
        Ok(Book {
            file: None,
            max_keys: o.max_keys,
            logs: Vec::new(),
            current: None,
            keys: HashMap::new(),
            order: BTreeMap::new(),
            ticks: 0,
            generation: 0,
            changed: false,
        })
    }

    /// Returns what the book knows now. Take one at the start of each call.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let known = self.current.and_then(|at| self.logs.get(at));
        Mark { generation: self.generation, next: known.map_or(0, |l| l.next), size: known.map_or(0, |l| l.size) }
    }

    /// Compares the receipt of a call with its mark and with what the book knows,
    /// and remembers it. `kid` is the key that the receipt is about, with or
    /// without a version; empty if none is. Fails with [`Error::Invalid`],
    /// [`Error::LogChanged`] or [`Error::Rollback`]; then the result must not be
    /// used. Check each receipt once.
    pub fn check(&mut self, mark: Mark, kid: &str, receipt: &Receipt<'_>) -> Result<(), Error> {
        let r = receipt;
        let kid = base_kid(kid)?;
        if !valid_text(r.log, MAX_ORIGIN) {
            return Err(Error::Invalid("log of the receipt"));
        }
        if r.log_index >= MAX_NUMBER || r.key_seq > MAX_NUMBER || r.checkpoint_size > MAX_NUMBER {
            return Err(Error::Invalid("number of the receipt"));
        }
        if (r.key_seq == 0) != kid.is_empty() {
            return Err(Error::Invalid("key_seq for this kid"));
        }
        let at = self.pin(r.log)?;
        let known = self.keys.get(kid).copied();
        let mark = if mark.generation == self.generation { mark } else { Mark::default() };
        let Some(log) = self.logs.get_mut(at) else {
            return Err(Error::LogChanged(None));
        };
        if let Some(reason) = judge(mark, log, known, r) {
            self.changed |= !log.stopped;
            log.stopped = true;
            return Err(Error::Rollback(reason));
        }
        if r.checkpoint_size > log.size {
            log.size = r.checkpoint_size;
            self.changed = true;
        }
        if r.log_index >= log.next {
            log.next = r.log_index + 1;
            self.changed = true;
        }
        if !kid.is_empty() {
            self.rise(kid, r.key_seq, r.log_index);
        }
        Ok(())
    }

    /// Makes `origin` the current log. The one before is left: its sizes stay, its
    /// keys are forgotten. Accepting the current log changes nothing, so a stopped
    /// one remains stopped. Fails with [`Error::Invalid`] if `origin` is none, or
    /// one too many.
    pub fn accept(&mut self, origin: &str) -> Result<(), Error> {
        if !valid_text(origin, MAX_ORIGIN) {
            return Err(Error::Invalid("origin"));
        }
        let found = self.find(origin);
        if found.is_some() && found == self.current {
            return Ok(());
        }
        let at = match found {
            Some(at) => at,
            None => self.add(origin)?,
        };
        if let Some(before) = self.current.and_then(|c| self.logs.get_mut(c)) {
            before.stopped = false;
        }
        self.change(Some(at));
        Ok(())
    }

    /// Removes all memory of a log, keys included: the way to go on with a stopped
    /// one. Fails with [`Error::Invalid`] if it is not known.
    pub fn forget(&mut self, origin: &str) -> Result<(), Error> {
        let at = self.find(origin).ok_or(Error::Invalid("origin: not remembered"))?;
        self.logs.remove(at);
        self.changed = true;
        match self.current {
            Some(c) if c == at => self.change(None),
            Some(c) if c > at => self.current = Some(c - 1),
            _ => {}
        }
        Ok(())
    }

    /// Rules 2 and 3: the place of the current log, which is origin.
    fn pin(&mut self, origin: &str) -> Result<usize, Error> {
        let found = self.find(origin);
        match (self.current, found) {
            (Some(c), Some(at)) if c == at => Ok(at),
            (None, None) => {
                let at = self.add(origin)?;
                self.current = Some(at);
                Ok(at)
            }
            (current, _) => Err(Error::LogChanged(current.and_then(|c| self.logs.get(c)).map(|l| l.origin.clone()))),
        }
    }

    fn find(&self, origin: &str) -> Option<usize> {
        self.logs.iter().position(|l| l.origin == origin)
    }

    fn add(&mut self, origin: &str) -> Result<usize, Error> {
        if self.logs.len() == MAX_LOGS {
            return Err(Error::Invalid("origin: too many logs are remembered"));
        }
        self.logs.push(Log { origin: origin.to_owned(), stopped: false, size: 0, next: 0 });
        self.changed = true;
        Ok(self.logs.len() - 1)
    }

    /// Remembers a key if it is higher than what is known of it, and forgets what is
    /// too much.
    fn rise(&mut self, kid: &str, seq: u64, index: u64) {
        let name = match self.keys.get(kid) {
            Some(known) if seq <= known.seq => return,
            Some(known) => self.order.remove(&known.rose),
            None => None,
        };
        let name = name.unwrap_or_else(|| Arc::from(kid));
        self.ticks += 1;
        self.keys.insert(name.clone(), Key { seq, index, rose: self.ticks });
        self.order.insert(self.ticks, name);
        self.changed = true;
        if self.keys.len() > self.max_keys {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.keys.remove(&oldest);
            }
        }
    }

    /// Makes another log current, or none.
    fn change(&mut self, current: Option<usize>) {
        self.current = current;
        self.keys.clear();
        self.order.clear();
        self.generation += 1;
        self.changed = true;
    }
}

/// Rules 4 to 7: the one that is broken.
fn judge(mark: Mark, log: &Log, known: Option<Key>, r: &Receipt<'_>) -> Option<Reason> {
    if log.stopped {
        return Some(Reason::Stopped);
    }
    if r.log_index < mark.next || r.log_index < mark.size || r.log_index + 1 == log.next {
        return Some(Reason::Index);
    }
    if r.checkpoint_size < mark.size {
        return Some(Reason::Checkpoint);
    }
    if let Some(k) = known {
        let apart = |from: u64, to: u64| to.checked_sub(from).filter(|&d| d > 0);
        let up = apart(k.seq, r.key_seq).zip(apart(k.index, r.log_index));
        let down = apart(r.key_seq, k.seq).zip(apart(r.log_index, k.index));
        if up.or(down).is_none_or(|(seqs, indexes)| seqs > indexes) {
            return Some(Reason::Key);
        }
    }
    None
}

/// Checks the form of a kid and cuts its version off. Empty is none.
fn base_kid(kid: &str) -> Result<&str, Error> {
    let (base, version) = match kid.split_once('#') {
        _ if kid.is_empty() => return Ok(kid),
        Some((base, version)) => (base, Some(version)),
        None => (kid, None),
    };
    let version_ok = version.is_none_or(|v| {
        let number = v.strip_prefix('v').and_then(format::parse_number);
        number.is_some_and(|n| n > 0 && n <= u64::from(u32::MAX))
    });
    if version_ok && valid_text(base, MAX_KID) {
        Ok(base)
    } else {
        Err(Error::Invalid("kid"))
    }
}

/// Reports whether a text is 1 to max bytes of ASCII without spaces and control
/// characters.
fn valid_text(text: &str, max: usize) -> bool {
    !text.is_empty() && text.len() <= max && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests;

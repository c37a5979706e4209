//! The file of a book: locked, and replaced as a whole.

use crate::{Book, Error, Options};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where a book is kept. The lock goes with the file that holds it.
#[derive(Debug)]
pub(crate) struct Locked {
    path: PathBuf,
    _lock: File,
}

impl Book {
    /// Makes the file of a new, empty book and opens it. Fails with
    /// [`Error::Locked`], or [`Error::Io`] of kind `AlreadyExists` if the file is
    /// there.
    pub fn create(path: impl AsRef<Path>, o: Options) -> Result<Book, Error> {
        let mut book = Book::with_lock(path.as_ref(), o)?;
        match fs::symlink_metadata(&path) {
            Ok(_) => return Err(io::Error::from(io::ErrorKind::AlreadyExists).into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
        book.changed = true;
        book.save()?;
        Ok(book)
    }

    /// Opens the book in a file. Fails with [`Error::Locked`], [`Error::Corrupt`],
    /// or [`Error::Io`] of kind `NotFound` if the file is not there.
    pub fn open(path: impl AsRef<Path>, o: Options) -> Result<Book, Error> {
        let mut book = Book::with_lock(path.as_ref(), o)?;
        let bytes = fs::read(&path)?;
        book.decode(std::str::from_utf8(&bytes).map_err(|_| Error::Corrupt(1))?)?;
        book.changed = false;
        Ok(book)
    }

    /// Writes what has changed, and returns when it is durable. If it fails, the
    /// file is the old one. In memory it does nothing.
    pub fn save(&mut self) -> Result<(), Error> {
        if let Some(file) = self.file.as_ref().filter(|_| self.changed) {
            replace(&file.path, &self.encode())?;
            self.changed = false;
        }
        Ok(())
    }

    /// Saves and unlocks the file.
    pub fn close(mut self) -> Result<(), Error> {
        self.save()
    }

    fn with_lock(path: &Path, o: Options) -> Result<Book, Error> {
        let mut book = Book::new(o)?;
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(beside(path, ".lock"))?;
        // On Unix this is flock(LOCK_EX | LOCK_NB).
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Error::Locked,
            TryLockError::Error(e) => Error::Io(e),
        })?;
        book.file = Some(Locked { path: path.to_owned(), _lock: lock });
        Ok(book)
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Puts text in place of the file, whole and durable or not at all.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let tmp = beside(path, ".tmp");
    // What an interrupted save left. The lock says that nobody is writing it.
    match fs::remove_file(&tmp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut f = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
    let written = f.write_all(text.as_bytes()).and_then(|()| f.sync_all()).and_then(|()| fs::rename(&tmp, path));
    if let Err(e) = written {
        let _ = fs::remove_file(&tmp); // the next save does it otherwise
        return Err(e);
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

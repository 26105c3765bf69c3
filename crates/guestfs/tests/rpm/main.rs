//! rpm's databases as rpm itself makes and lists them, and what damaged ones lead to.

mod memory;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use guestfs::Result;
use guestfs::inspect::{Application, packages};
use memory::Memory;

/// 61 packages with epochs, and descriptions that fill several pages of a database.
const SPEC: &str = r#"
Name: alpha
Epoch: 2
Version: 1.0
Release: 1.fc39
Summary: Première <package> & more
License: MIT
URL: https://example.org/alpha
BuildArch: noarch
%description
Long text.

Second paragraph.

%{lua: for n = 1, 60 do print(rpm.expand(string.format([[

%%package -n part%02d
Epoch: %d
Summary: Part %d
%%description -n part%02d
%s
%%files -n part%02d

]], n, n % 3, n, n, string.rep("All about part " .. n .. ". ", n * 12), n))) end}
%files
"#;

const FORMAT: &str = "%{NAME}|%{EPOCHNUM}|%{VERSION}|%{RELEASE}|%{ARCH}|%{URL}|%{SOURCERPM}|%{SUMMARY}|%{DESCRIPTION}\x1e";

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.env("LC_ALL", "C.UTF-8").output();
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}; scripts/setup installs it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn rpm(program: &str, folder: &Path, backend: &str, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(["--define", &format!("_db_backend {backend}"), "--dbpath"]).arg(folder);
    run(command.args(args).stderr(Stdio::piped()))
}

/// A folder with a SQLite database of SPEC's packages.
fn database() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("many.spec"), SPEC).unwrap();
    let top = format!("_topdir {}", dir.path().display());
    run(Command::new("rpmbuild").args(["-bb", "--define", &top]).arg(dir.path().join("many.spec")));
    let built = std::fs::read_dir(dir.path().join("RPMS/noarch")).unwrap().map(|e| e.unwrap().path());
    let built: Vec<String> = built.map(|p| p.to_str().unwrap().to_string()).collect();
    let mut args = vec!["-i", "--justdb", "--nodeps", "--noscripts", "--force-debian"];
    args.extend(built.iter().map(String::as_str));
    rpm("rpm", dir.path(), "sqlite", &args);
    dir
}

/// What rpm lists in a folder's database, in the order of names.
fn listed(folder: &Path, backend: &str) -> Vec<String> {
    let text = String::from_utf8(rpm("rpm", folder, backend, &["-qa", "--qf", FORMAT])).unwrap();
    let mut rows: Vec<String> = text.split_terminator('\x1e').map(str::to_string).collect();
    rows.sort();
    rows
}

fn row(app: &Application) -> String {
    let texts = [&app.version, &app.release, &app.arch, &app.url, &app.source_package, &app.summary, &app.description];
    texts.iter().fold(format!("{}|{}", app.name, app.epoch), |mut row, text| {
        let _ = write!(row, "|{text}");
        row
    })
}

fn rows(guest: &Memory) -> Result<Vec<String>> {
    let mut rows: Vec<String> = packages::of_format(guest, "rpm")?.unwrap().iter().map(row).collect();
    rows.sort();
    Ok(rows)
}

fn guest(files: &[(&str, Vec<u8>)]) -> Memory {
    let mut tree = BTreeMap::from([("/etc/os-release".to_string(), b"ID=fedora\nVERSION_ID=39\n".to_vec())]);
    tree.extend(files.iter().map(|(path, content)| (path.to_string(), content.clone())));
    Memory(tree)
}

/// A Berkeley DB of these headers, by its own loader.
fn berkeley(dir: &Path, headers: &[u8]) -> Vec<u8> {
    let mut load = String::from("VERSION=3\nformat=bytevalue\ntype=hash\ndb_pagesize=4096\nHEADER=END\n");
    let (mut rest, mut count) = (headers, 0u32);
    while let Some((head, after)) = rest.split_at_checked(8) {
        let number = |at: usize| u32::from_be_bytes(after[at..at + 4].try_into().unwrap()) as usize;
        let (header, after) = after.split_at(8 + 16 * number(0) + number(4));
        assert!(head.starts_with(b"\x8e\xad\xe8\x01"));
        count += 1;
        writeln!(load, " {}\n {}", hex(&count.to_le_bytes()), hex(header)).unwrap();
        rest = after;
    }
    writeln!(load, " 00000000\n {}\nDATA=END", hex(&count.to_le_bytes())).unwrap();
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("load"), load).unwrap();
    run(Command::new("db5.3_load").arg("-f").args([dir.join("load"), dir.join("Packages")]));
    std::fs::read(dir.join("Packages")).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// A copy of the database in which a package was removed by a program that never came to merge its log, and another
/// was to be removed when it stopped.
const UNMERGED: &str = r#"
import os, shutil, sqlite3, sys
folder = sys.argv[1]
shutil.copy(folder + "/rpmdb.sqlite", folder + "/open.sqlite")
db = sqlite3.connect(folder + "/open.sqlite", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("PRAGMA wal_autocheckpoint = 0")
db.execute("DELETE FROM Packages WHERE hnum = 7")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.execute("DELETE FROM Packages WHERE hnum > 9")
db.execute("UPDATE Packages SET blob = zeroblob(300000)")
os.makedirs(folder + "/unmerged")
for end in ("", "-wal"):
    shutil.copy(folder + "/open.sqlite" + end, folder + "/unmerged/rpmdb.sqlite" + end)
os._exit(0)
"#;

#[test]
fn sqlite_and_berkeley_databases_are_read_as_rpm_reads_them() {
    let dir = database();
    let expected = listed(dir.path(), "sqlite");
    assert_eq!(expected.len(), 61);
    let sqlite = std::fs::read(dir.path().join("rpmdb.sqlite")).unwrap();
    assert_eq!(rows(&guest(&[("/var/lib/rpm/rpmdb.sqlite", sqlite.clone())])).unwrap(), expected);

    let headers = rpm("rpmdb", dir.path(), "sqlite", &["--exportdb"]);
    let folder = dir.path().join("berkeley");
    let berkeley = berkeley(&folder, &headers);
    assert_eq!(listed(&folder, "bdb_ro"), expected);
    assert_eq!(rows(&guest(&[("/var/lib/rpm/Packages", berkeley.clone())])).unwrap(), expected);

    run(Command::new("python3").args(["-c", UNMERGED]).arg(dir.path()));
    let unmerged = dir.path().join("unmerged");
    let [main, log] = ["rpmdb.sqlite", "rpmdb.sqlite-wal"].map(|name| std::fs::read(unmerged.join(name)).unwrap());
    let open = guest(&[("/usr/lib/sysimage/rpm/rpmdb.sqlite", main), ("/usr/lib/sysimage/rpm/rpmdb.sqlite-wal", log)]);
    let found = rows(&open).unwrap();
    assert_eq!(found, listed(&unmerged, "sqlite"));
    assert_eq!(found.len(), 60);

    damage("/var/lib/rpm/rpmdb.sqlite", &sqlite);
    damage("/var/lib/rpm/Packages", &berkeley);
}

#[test]
fn ndb_databases_are_read_as_rpm_read_them() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rpm/fixtures/ndb.Packages.db.gz");
    let ndb = run(Command::new("gzip").args(["-dc", fixture]));
    let mut expected: Vec<&str> = include_str!("fixtures/ndb.txt").lines().collect();
    expected.sort_unstable();
    let found = rows(&guest(&[("/usr/lib/sysimage/rpm/Packages.db", ndb.clone())])).unwrap();
    assert_eq!(found.len(), 3);
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.strip_suffix("|Long text.\n\nSecond paragraph."), Some(expected));
    }
    damage("/usr/lib/sysimage/rpm/Packages.db", &ndb);
}

/// Every structure broken at random leads to an answer or an error, and soon.
fn damage(path: &str, database: &[u8]) {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut guest = guest(&[(path, database.to_vec())]);
    let mut errors = 0;
    for round in 0..400 {
        let mut content = database.to_vec();
        for _ in 0..1 + random(8) {
            // Where the structures begin, as often as anywhere.
            let at = if round % 2 == 0 { random(content.len()) } else { random(content.len() / 512) * 512 + random(40) };
            content[at] = [0, 0xff, random(256) as u8][random(3)];
        }
        if round % 10 == 0 {
            content.truncate(random(database.len()));
        }
        guest.0.insert(path.to_string(), content);
        errors += usize::from(rows(&guest).is_err());
    }
    assert!(errors > 20, "{errors} of 400 damaged databases were found to be so");
}

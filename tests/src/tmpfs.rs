//! A small disk that a test can fill.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A file system in memory with a fixed size. It is unmounted with the process.
pub struct Tmpfs {
    path: PathBuf,
    /// Unmounts the file system when its input closes, however this process ends.
    _supervisor: Child,
}

/// A server on the disk may need a while to stop. A server that does not stop must not keep the disk forever.
const SUPERVISOR: &str = r#"
cat >/dev/null
for _ in $(seq 100); do
    umount "$1" && break
    sleep 0.1
done
umount --lazy "$1"
rmdir "$1" "$(dirname "$1")"
"#;

impl Tmpfs {
    /// Mounts a disk of `mebibytes` MiB in a new temporary folder.
    ///
    /// # Panics
    ///
    /// When the disk cannot be mounted.
    pub fn mount(mebibytes: u32) -> Self {
        let folder = TempDir::with_prefix("disk").expect("a temporary folder").keep();
        Self::mount_at(&folder.join("small"), mebibytes)
    }

    /// Creates the folder `path`, and mounts a disk of `mebibytes` MiB there.
    ///
    /// # Panics
    ///
    /// When the disk cannot be mounted.
    pub fn mount_at(path: &Path, mebibytes: u32) -> Self {
        fs::create_dir(path).expect("the folder is made");
        let mut supervisor = Command::new("sh");
        supervisor.args(["-c", SUPERVISOR, "supervisor"]).arg(path);
        // Start the supervisor before the disk is mounted: then a process that is killed in between leaves nothing mounted.
        let supervisor = supervisor.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("sh starts");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(path);
        let mounted = mount.output().expect("mount starts");
        assert!(
            mounted.status.success(),
            "a small disk cannot be mounted: run this test as root, in a container with CAP_SYS_ADMIN: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self { path: path.to_owned(), _supervisor: supervisor }
    }

    /// The path of the disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills the disk to its last byte. It has free space again when the result is dropped.
    ///
    /// # Panics
    ///
    /// When no file can be created on the disk, or the disk is larger than 1 GiB.
    pub fn fill(&self) -> Filling {
        let path = self.path.join("filling");
        let mut file = fs::File::create(&path).expect("the file is made");
        for length in [65536, 4096, 1] {
            while file.write_all(&vec![0; length]).is_ok() {
                assert!(file.metadata().expect("it is open").len() < 1 << 30, "the disk is larger than a small one");
            }
        }
        Filling(path)
    }
}

/// The file that takes all the space of a [`Tmpfs`].
pub struct Filling(PathBuf);

impl Drop for Filling {
    fn drop(&mut self) {
        // The disk itself may already be unmounted.
        let _ = fs::remove_file(&self.0);
    }
}

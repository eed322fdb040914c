//! `cargo xtask image`: builds the image without a network's images, and runs it
//! as the manifests deploy it.
//!
//! The base is made by mmdebstrap of libc6 and libgcc-s1 alone, the programs are
//! those of the tests, and buildah follows deploy/Containerfile. A container
//! runtime may be missing or forbidden (CI is itself a container), so the test
//! brings its own: tests/python/contain.py.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run::{cargo, output, root, run, say};
use crate::{test, tools};

/// What builds the image; each is a Debian package of its own name.
const PROGRAMS: [&str; 2] = ["buildah", "mmdebstrap"];

/// All that the two programs load.
const BASE_PACKAGES: &str = "libc6,libgcc-s1";

const BASE: &str = "localhost/tpad-base";
const IMAGE: &str = "localhost/tpad-check";

/// Where a Debian or Ubuntu keeps its authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Builds, mounts, tests and removes.
pub(crate) fn image() -> Result<()> {
    let tools = tools::setup()?;
    prerequisites()?;
    test::build()?;
    let place = root().join("target/image");
    let _ = std::fs::remove_dir_all(place.join("programs"));
    std::fs::create_dir_all(place.join("programs")).context("target/image cannot be made")?;
    let buildah = Buildah { store: place.join("storage") };
    let result = buildah.base(&place).and_then(|()| {
        buildah.programs(&place)?;
        buildah.image(&place)?;
        buildah.check(&place, &tools)
    });
    // Also after a failure: images are hundreds of megabytes.
    buildah.remove();
    result
}

fn prerequisites() -> Result<()> {
    let root = output(Command::new("id").arg("-u"))?.trim() == "0";
    if !root {
        bail!("the image's test mounts and changes users: run it as root");
    }
    let missing = || PROGRAMS.into_iter().filter(|name| !found(name)).collect::<Vec<_>>();
    if !missing().is_empty() && found("apt-get") {
        say(&format!("installing {}", missing().join(", ")));
        // Old lists of packages name versions that are gone.
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
        let install = ["install", "--quiet", "--yes", "--no-install-recommends"];
        run(Command::new("apt-get").args(install).args(missing()))?;
    }
    let missing = missing();
    if !missing.is_empty() {
        bail!("{} missing: install it; on Debian and Ubuntu: apt install", missing.join(", "));
    }
    Ok(())
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// buildah with a store of its own below target/.
struct Buildah {
    store: PathBuf,
}

impl Buildah {
    fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        // vfs copies whole layers, and works wherever a file can be written.
        command.args(["--storage-driver", "vfs"]);
        command.arg("--root").arg(self.store.join("root"));
        command.arg("--runroot").arg(self.store.join("run"));
        command
    }

    /// An image with nothing but glibc, made from Debian's packages.
    fn base(&self, place: &Path) -> Result<()> {
        let release = release()?;
        let archive = place.join("base.tar");
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--quiet", "--variant=extract", "--include", BASE_PACKAGES]);
        run(mmdebstrap.arg(&release).arg(&archive))?;
        let container = output(self.command().args(["from", "scratch"]))?;
        let container = container.trim();
        output(self.command().args(["add", container]).arg(&archive).arg("/"))?;
        output(self.command().args(["commit", "--quiet", "--rm", container, BASE]))?;
        Ok(())
    }

    /// What the Containerfile's stage `programs` would compile.
    fn programs(&self, place: &Path) -> Result<()> {
        let programs = place.join("programs");
        for name in ["tpad", "tpactl"] {
            // Beside this program, wherever cargo's target folder is.
            let built = std::env::current_exe()?.with_file_name(name);
            let copy = programs.join(name);
            std::fs::copy(&built, &copy).with_context(|| format!("{name} is not built"))?;
            // Debug builds are mostly tables for debuggers.
            run(Command::new("strip").arg("--strip-debug").arg(&copy))?;
        }
        std::fs::copy(AUTHORITIES, programs.join("ca-certificates.crt"))
            .with_context(|| format!("{AUTHORITIES}: install ca-certificates"))?;
        Ok(())
    }

    fn image(&self, place: &Path) -> Result<()> {
        let mut programs = std::ffi::OsString::from("programs=");
        programs.push(place.join("programs"));
        let mut build = self.command();
        // Docker's format has a place for HEALTHCHECK.
        build.args(["build", "--format", "docker", "--isolation", "chroot", "--pull-never"]);
        build.args(["--build-arg", &format!("BASE={BASE}"), "--build-context"]).arg(programs);
        build.args(["--file", "deploy/Containerfile", "--tag", IMAGE, "."]);
        run(&mut build)
    }

    fn check(&self, place: &Path, tools: &Path) -> Result<()> {
        let inspected = place.join("inspected.json");
        let text = output(self.command().args(["inspect", "--type", "image", IMAGE]))?;
        std::fs::write(&inspected, text).context("target/image cannot be written")?;
        let container = output(self.command().args(["from", "--pull-never", IMAGE]))?;
        let mounted = output(self.command().args(["mount", container.trim()]))?;
        // The whole workspace's features, as in `build`: nothing is compiled twice.
        let image = ["test", "--workspace", "--offline", "--test", "image"];
        run(cargo().args(image).arg("--no-run"))?;
        // The manifests' ports, in a network where nobody else can be: nothing
        // leaves it, and nothing listens on this machine's addresses. Whatever
        // the test has started ends with it.
        let script = "ip link set lo up && exec \"$@\"";
        let mut test = Command::new("unshare");
        test.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        test.args(["sh", "-c", script, "sh"]).arg(cargo().get_program());
        test.args(image);
        test.env("TPAD_IMAGE_ROOT", mounted.trim()).env("TPAD_IMAGE_INSPECTED", inspected);
        run(test.env("TPAD_TEST_TOOLS", tools))
    }

    fn remove(&self) {
        for arguments in [["umount", "--all"], ["rm", "--all"], ["rmi", "--all"]] {
            if let Err(error) = output(self.command().args(arguments)) {
                say(&format!("warning: {error:#}"));
            }
        }
    }
}

/// The release that this machine runs: the programs were linked with its glibc.
fn release() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no release of Debian")?.trim_matches('"').to_owned())
}

//! A container of a rendered Pod, run from an image's root file system.
//!
//! `tests/python/contain.py` is the runtime: read-only root, the Pod's user and
//! groups, no capability, volumes where the Pod mounts them. It takes root and a
//! network of one's own; `cargo xtask image` gives both.

use std::collections::BTreeMap;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::{Value, json};

use crate::tools;

/// An image: its root file system, mounted, and its configuration.
#[derive(Debug)]
pub struct Image {
    root: PathBuf,
    config: Value,
}

impl Image {
    /// The image that `cargo xtask image` has built and mounted.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn built() -> Self {
        let variable = |name: &str| {
            let value = std::env::var_os(name);
            PathBuf::from(value.expect("this test is run by `cargo xtask image`"))
        };
        let inspected = std::fs::read(variable("TPAD_IMAGE_INSPECTED")).expect("its description");
        let inspected: Value = serde_json::from_slice(&inspected).expect("JSON");
        let config = inspected["Docker"]["config"].clone();
        Self { root: variable("TPAD_IMAGE_ROOT"), config }
    }

    /// Where its files are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its configuration, as Docker writes it.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }
}

/// Volumes by name, each a directory of the host.
pub type Volumes = BTreeMap<String, PathBuf>;

/// One container of a Pod.
#[derive(Clone, Debug)]
pub struct Container {
    plan: Value,
    directory: PathBuf,
}

impl Container {
    /// The first container of a Pod's `spec`. `secrets` are the environment that
    /// the Pod's Secret would hold; files of the run go to `directory`.
    ///
    /// # Panics
    /// When the Pod mounts a volume that is not in `volumes`.
    #[must_use]
    pub fn of(
        spec: &Value,
        image: &Image,
        volumes: &Volumes,
        secrets: &[(&str, String)],
        directory: &Path,
    ) -> Self {
        let container = &spec["containers"][0];
        let mut argv = match texts(&container["command"]) {
            none if none.is_empty() => texts(&image.config["Entrypoint"]),
            command => command,
        };
        argv.extend(texts(&container["args"]));
        let mut env: BTreeMap<String, String> = texts(&image.config["Env"])
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        env.extend(secrets.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        for variable in array(&container["env"]) {
            let text = |field: &str| variable[field].as_str().expect("text").to_owned();
            env.insert(text("name"), text("value"));
        }
        let mounts = array(&container["volumeMounts"]).iter().map(|mount| {
            let name = mount["name"].as_str().expect("a volume's name");
            let source = volumes.get(name).expect("every mounted volume");
            json!([source, mount["mountPath"], mount["readOnly"] == true])
        });
        let context = &spec["securityContext"];
        let mut groups = array(&context["supplementalGroups"]).to_vec();
        groups.extend(context["fsGroup"].as_u64().map(Value::from));
        let plan = json!({
            "root": image.root,
            "mounts": mounts.collect::<Vec<_>>(),
            "user": context["runAsUser"],
            "group": context["runAsGroup"],
            "groups": groups,
            "env": env,
            "argv": argv,
        });
        Self { plan, directory: directory.to_owned() }
    }

    /// The same container with other arguments: what `kubectl exec` would run.
    #[must_use]
    pub fn exec(&self, argv: &[String]) -> Self {
        let mut plan = self.plan.clone();
        plan["argv"] = json!(argv);
        Self { plan, directory: self.directory.clone() }
    }

    /// The same container, started with further arguments.
    #[must_use]
    pub fn with(mut self, further: &[String]) -> Self {
        let mut argv = texts(&self.plan["argv"]);
        argv.extend_from_slice(further);
        self.plan["argv"] = json!(argv);
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self) -> Output {
        self.command().output().expect("unshare runs")
    }

    /// Starts it; its output goes to a file.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self) -> Running {
        let log = self.directory.join("container.log");
        let output = std::fs::File::create(&log).expect("a log file");
        let mut command = self.command();
        command.stdout(output.try_clone().expect("a second handle")).stderr(output);
        Running { child: command.spawn().expect("unshare starts"), log }
    }

    fn command(&self) -> Command {
        let plan = self.directory.join("container.json");
        std::fs::write(&plan, self.plan.to_string()).expect("the plan is written");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(tools::tool("python"));
        command.arg(tools::workspace().join("tests/python/contain.py")).arg(plan);
        command.stdin(Stdio::null());
        command
    }
}

/// A container that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// What it has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_some()
    }

    /// A file of `/proc/PID`.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("it lives")
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    pub fn stop(mut self, signal: &str) -> ExitStatus {
        let pid = self.child.id().to_string();
        let mut kill = Command::new("kill");
        kill.args(["-s", signal.trim_start_matches("SIG"), &pid]);
        assert!(kill.status().expect("kill runs").success(), "it was gone:\n{}", self.log());
        self.child.wait().expect("it can be waited for")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A directory for each volume of a Pod and each claim of its workload, as the
/// kubelet would prepare it; a directory of the host is shared by its path.
///
/// # Panics
/// When they cannot be made.
#[must_use]
pub fn volumes(spec: &Value, claims: &Value, maps: &[&Value], directory: &Path) -> Volumes {
    let group = spec["securityContext"]["fsGroup"].as_u64().and_then(|group| group.try_into().ok());
    let own = |name: &str| {
        let path = directory.join(name);
        std::fs::create_dir(&path).expect("a new directory");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o2777);
        std::fs::set_permissions(&path, mode).expect("its permissions");
        chown(&path, None, group).expect("root may give it away");
        path
    };
    let mut made = Volumes::new();
    for volume in array(&spec["volumes"]) {
        let name = volume["name"].as_str().expect("a name");
        let path = if let Some(host) = volume["hostPath"]["path"].as_str() {
            let path = directory.parent().expect("a parent").join("host").join(&host[1..]);
            std::fs::create_dir_all(&path).expect("a directory of the host");
            path
        } else {
            own(name)
        };
        if let Some(map) = volume["configMap"]["name"].as_str() {
            let found = maps.iter().find(|found| found["metadata"]["name"] == map);
            for (file, text) in found.expect("the ConfigMap")["data"].as_object().expect("files") {
                let text = text.as_str().expect("text");
                std::fs::write(path.join(file), text).expect("a file of the ConfigMap");
            }
        }
        made.insert(name.to_owned(), path);
    }
    for claim in array(claims) {
        let name = claim["metadata"]["name"].as_str().expect("a claim's name");
        made.insert(name.to_owned(), own(name));
    }
    made
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value) -> Vec<String> {
    array(value).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

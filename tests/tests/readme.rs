//! README's commands are commands that exist, and its Python runs.

use std::process::Command;

use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said};
use tpad_tests::daemon::Served;
use tpad_tests::scene::play;
use tpad_tests::tools;

fn readme() -> String {
    std::fs::read_to_string(tools::workspace().join("README.md")).expect("README.md")
}

/// The fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let opening = format!("```{language}\n");
    let parts = text.split(&opening).skip(1);
    parts.map(|part| part.split("```").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn commands_and_their_options_exist() {
    let text = readme();
    let lines: Vec<String> = blocks(&text, "sh")
        .iter()
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let mut checked = 0;
    for line in &lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (program, rest) = match &words[..] {
            ["tpad", rest @ ..] | ["cargo", "run", "--release", "-p", "tpad", "--", rest @ ..] => {
                ("tpad", rest)
            }
            ["tpactl", rest @ ..] => ("tpactl", rest),
            _ => continue,
        };
        // The words before the first value name the command.
        let mut command = Command::new(tools::program(program));
        let subcommands = if rest.first() == Some(&"manifest") { 2 } else { 1 };
        command.args(&rest[..subcommands]).arg("--help");
        let output = command.output().expect("the program runs");
        assert!(output.status.success(), "{line}: {}", said(&output));
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        for option in rest.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{line}: no {option} in\n{help}");
        }
        checked += 1;
    }
    assert!(checked >= 7, "{lines:#?}");
    for expected in ["cargo run --release -p tpad -- demo", "cargo xtask test"] {
        assert!(lines.iter().any(|line| line == expected), "{expected} is not in README.md");
    }
}

#[test]
fn files_that_it_links_to_exist() {
    let text = readme();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.contains("://")) {
        assert!(tools::workspace().join(link).exists(), "{link} does not exist");
    }
}

#[test]
fn its_python_prints_the_experts_of_a_layer() {
    play(async |scene| {
        let text = readme();
        let directory = scene.directory();
        let checkpoint =
            Checkpoint::import(&fixture("mixtral"), Store::Directory, directory, None).await;
        let served = Served::start(scene, &checkpoint.section()).await;
        let address = served.address().trim_start_matches("http://").to_owned();
        std::os::unix::fs::symlink(tools::workspace().join("proto"), directory.join("proto"))
            .expect("a link");
        let python = tools::tool("python").display().to_string();
        let stubs = blocks(&text, "sh").into_iter().find(|block| block.contains("grpc_tools"));
        let stubs = stubs.expect("README makes the stubs").replace("python3", &python);
        let snippets = blocks(&text, "python");
        let snippet = snippets.into_iter().find(|block| block.contains("import grpc"));
        let snippet = snippet.expect("README has a client of grpcio");
        assert!(snippet.contains("127.0.0.1:7070"));
        let snippet = snippet.replace("127.0.0.1:7070", &address);
        let script = format!("set -e\n{stubs}\n{python} - <<'END'\n{snippet}\nEND\n");
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(script).current_dir(directory);
        let run = tokio::task::spawn_blocking(move || shell.output());
        let output = run.await.expect("it is joined").expect("bash runs");
        assert!(output.status.success(), "{}", said(&output));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        // Eight experts of three tensors.
        assert_eq!(printed.lines().count(), 24, "{printed}");
        assert!(
            printed.contains("model.layers.1.block_sparse_moe.experts.7.w3.weight BF16 [96, 64]")
        );
        served.stop().await;
    });
}

//! The code of recipes and examples, in real browsers and servers. The scripts start gateways of their own.

use std::path::{Path, PathBuf};

use crate::clients::run;
use crate::support::{Gateway, World};

/// Each page, and the folder that has its code.
const PAGES: [(&str, &str); 8] = [
    ("docs/signing.md", "examples/signing"),
    ("docs/recipes/ai-answer.md", "examples/recipes/ai-answer"),
    ("docs/recipes/chat.md", "examples/recipes/chat"),
    ("docs/recipes/dashboard.md", "examples/recipes/dashboard"),
    ("docs/recipes/job.md", "examples/recipes/job"),
    ("docs/recipes/notifications.md", "examples/recipes/notifications"),
    ("docs/recipes/cache.md", "examples/recipes/cache"),
    ("docs/recipes/flag.md", "examples/recipes/flag"),
];

/// Runs a script of `tests/clients/recipes`, whose gateways have this Redis, or none.
async fn run_script(name: &str, redis: Option<&World>) {
    let gateway = Gateway::start(|_| {}).await;
    let program = concat!("ROOMCAST_BIN=", env!("CARGO_BIN_EXE_roomcast"));
    let redis = redis.map(|world| format!("REDIS_URL={}", world.server().url())).unwrap_or_default();
    let variables = [program, &redis].into_iter().filter(|variable| !variable.is_empty());
    let arguments: Vec<_> = variables.chain(["node", name]).collect();
    run(&gateway, "env", &arguments).await;
}

/// The text of all files below a folder.
fn text_below(folder: &Path) -> String {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: PathBuf| {
        if path.is_dir() { text_below(&path) } else { std::fs::read_to_string(path).unwrap_or_default() }
    };
    paths.map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn each_line_of_code_on_the_pages_of_recipes_is_in_a_file_that_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, folder) in PAGES {
        let tested = text_below(&root.join(folder));
        let tested: Vec<_> = tested.lines().map(str::trim).collect();
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
        let is_code = |language: &str| matches!(language, "js" | "py" | "go" | "php");
        let code = blocks.filter(|(language, _)| is_code(language)).flat_map(|(_, code)| code.lines());
        let code: Vec<_> = code.map(str::trim).filter(|line| !line.is_empty()).collect();
        assert!(!code.is_empty(), "{page} has no code");
        for line in code {
            assert!(tested.contains(&line), "{page}: no file in {folder} has the line {line}");
        }
    }
}

#[tokio::test]
async fn tokens_of_each_language_are_accepted_and_a_page_renews_them() {
    run_script("recipes/signing.mjs", None).await;
}

#[tokio::test]
async fn an_answer_is_the_same_text_after_reloads_in_a_second_tab_and_when_replicas_are_killed() {
    run_script("recipes/ai_answer.mjs", Some(&World::redis().await)).await;
}

#[tokio::test]
async fn the_example_applications_work_as_their_readmes_say() {
    run_script("recipes/examples.mjs", None).await;
}

#[tokio::test]
async fn the_code_of_the_recipes_works() {
    tokio::join!(run_script("recipes/recipes.mjs", None), async {
        run_script("recipes/recipes.mjs", Some(&World::redis().await)).await;
    });
}

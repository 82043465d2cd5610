//! docker-compose.yml and what it mounts, checked without Docker.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A YAML file with its merge keys (`<<`) carried out.
fn yaml(path: &str) -> Value {
    let parsed = serde_yaml_ng::from_str(&read(path)).and_then(|mut yaml: serde_yaml_ng::Value| {
        yaml.apply_merge()?;
        serde_yaml_ng::from_value(yaml)
    });
    parsed.unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn services() -> Vec<(String, Value)> {
    let compose = yaml("docker-compose.yml");
    let services = compose["services"].as_object().unwrap();
    assert!(services.len() >= 6);
    services.iter().map(|(name, service)| (name.clone(), service.clone())).collect()
}

fn service(name: &str) -> Value {
    services().into_iter().find(|(found, _)| found == name).unwrap().1
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
}

/// `image:tag` with a tag that says a version.
fn is_pinned(image: &str) -> bool {
    let tag = image.rsplit_once(':').map(|(_, tag)| tag);
    tag.is_some_and(|tag| tag.bytes().any(|byte| byte.is_ascii_digit()) && !tag.contains("latest"))
        || image.contains("@sha256:")
}

/// Every `${NAME...}` of a text, as (name, whether it has a default).
fn substitutions(text: &str) -> Vec<(String, bool)> {
    let ends = text.split("${").skip(1).map(|rest| rest.split_once('}').unwrap().0);
    ends.map(|inside| match inside.split_once(":-") {
        Some((name, default)) => (name.to_owned(), !default.is_empty()),
        None => (inside.to_owned(), false),
    })
    .collect()
}

#[test]
fn every_image_is_pinned_and_every_build_target_exists() {
    let dockerfile = read("docker/Dockerfile");
    let froms: Vec<Vec<&str>> = dockerfile
        .lines()
        .filter(|line| line.starts_with("FROM "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let stages: BTreeSet<&str> = froms.iter().filter_map(|words| words.get(3).copied()).collect();
    for words in &froms {
        assert!(stages.contains(words[1]) || is_pinned(words[1]), "the Dockerfile's base {} is not pinned", words[1]);
    }
    for (name, service) in services() {
        let image = service["image"].as_str().unwrap();
        assert!(is_pinned(image), "{name}: {image} is not pinned");
        if let Some(build) = service["build"].as_object() {
            assert!(root().join(build["dockerfile"].as_str().unwrap()).exists(), "{name}: no such Dockerfile");
            assert!(stages.contains(build["target"].as_str().unwrap()), "{name}: no such target in the Dockerfile");
        }
    }
}

#[test]
fn what_the_dockerfile_copies_from_the_repository_is_there() {
    for line in read("docker/Dockerfile").lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from="))
    {
        let source = line.split_whitespace().nth(1).unwrap();
        assert!(root().join(source).exists(), "{line}: {source} is not there");
    }
}

#[test]
fn every_mount_is_there_and_every_volume_declared() {
    let declared = keys(&yaml("docker-compose.yml")["volumes"]);
    let mut used = BTreeSet::new();
    for (name, service) in services() {
        for mount in texts(&service["volumes"]) {
            let (source, rest) = mount.split_once(':').unwrap();
            if source.starts_with("./") {
                assert!(root().join(source).exists(), "{name} mounts {source}, which is not there");
                assert!(rest.ends_with(":ro"), "{name}: {source} is mounted writable");
            } else {
                assert!(declared.contains(source), "{name} mounts the volume {source}, which is not declared");
                used.insert(source.to_owned());
            }
        }
    }
    assert_eq!(declared, used, "declared and used volumes differ");
    assert!(declared.contains("clickhouse_data"));
}

#[test]
fn dependencies_exist_and_can_be_met() {
    let all = services();
    for (name, service) in &all {
        for (needed, how) in service["depends_on"].as_object().into_iter().flatten() {
            let found = all.iter().find(|(other, _)| other == needed);
            let (_, other) = found.unwrap_or_else(|| panic!("{name} depends on {needed}, which is no service"));
            match how["condition"].as_str().unwrap() {
                "service_healthy" => assert!(other["healthcheck"]["test"].is_array(), "{needed} has no health check"),
                "service_completed_successfully" => assert_eq!(other["restart"], "no", "{needed} never ends"),
                condition => panic!("{name}: {condition} says nothing about {needed}"),
            }
        }
    }
}

#[test]
fn long_running_services_restart_are_watched_and_nothing_runs_as_root() {
    for (name, service) in services() {
        let user = service["user"].as_str().unwrap_or_else(|| panic!("{name} does not say its user"));
        assert!(!user.starts_with("0:") && user != "0" && user != "root", "{name} runs as root");
        match service["restart"].as_str() {
            Some("no") => {}
            Some("unless-stopped") => assert!(service["healthcheck"]["test"].is_array(), "{name} has no health check"),
            other => panic!("{name}: restart is {other:?}"),
        }
        for port in texts(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name} publishes {port} beyond this machine");
        }
    }
}

#[test]
fn it_starts_without_a_single_variable_set() {
    for (name, has_default) in substitutions(&read("docker-compose.yml")) {
        assert!(has_default, "${{{name}}} has no default");
    }
}

#[test]
fn each_pipeline_file_is_there_and_its_variables_are_set() {
    for (name, service) in services() {
        let command = texts(&service["command"]).join(" ");
        let Some(file) = command.split_whitespace().find(|word| word.ends_with(".sql")) else { continue };
        let sql = read(file);
        let named = sql.split("{{").skip(1).map(|rest| rest.split_once("}}").unwrap().0.trim().to_owned());
        // What the UDFs read, beside what the SQL names.
        let needed: BTreeSet<String> =
            named.chain(["CLICKHOUSE_URL".to_owned(), "MOCKSTAGRAM_URL".to_owned()]).collect();
        let missing: Vec<_> = needed.difference(&keys(&service["environment"])).cloned().collect();
        assert!(missing.is_empty(), "{name} runs {file} without {missing:?}");
    }
}

#[test]
fn grafana_finds_its_data_source_its_user_and_its_dashboards() {
    let source = &yaml("grafana/provisioning/datasources/clickhouse.yml")["datasources"][0];
    let grafana = service("grafana");
    let clickhouse = service("clickhouse");

    // The address is the service's, on the port its health check asks.
    assert_eq!(source["jsonData"]["host"], "clickhouse");
    assert!(clickhouse["healthcheck"]["test"].to_string().contains(&format!(":{}/ping", source["jsonData"]["port"])));

    // The user is ClickHouse's, and both sides take the password from the same variable.
    let user = source["jsonData"]["username"].as_str().unwrap();
    let users = read("docker/clickhouse/users.d/dashboards.xml");
    let variable = source["secureJsonData"]["password"].as_str().unwrap().trim_start_matches('$').to_owned();
    assert!(users.contains(&format!("<{user}>")) && users.contains(&format!("from_env=\"{variable}\"")));
    assert_eq!(grafana["environment"][&variable], clickhouse["environment"][&variable]);
    assert!(grafana["environment"][&variable].is_string());

    // The dashboards are mounted where the provider looks, the plugin is installed, and the panels ask this source.
    let folder = yaml("grafana/provisioning/dashboards/tickhouse.yml")["providers"][0]["options"]["path"].clone();
    let mount = format!("./grafana/dashboards:{}:ro", folder.as_str().unwrap());
    assert!(texts(&grafana["volumes"]).contains(&mount), "{mount}");
    let home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap();
    let home = home.strip_prefix(folder.as_str().unwrap()).unwrap();
    let dashboard: Value = serde_json::from_str(&read(&format!("grafana/dashboards{home}"))).unwrap();
    let plugin = grafana["environment"]["GF_PLUGINS_PREINSTALL_SYNC"].as_str().unwrap();
    let expected = serde_json::json!({ "type": source["type"], "uid": source["uid"] });
    assert_eq!(Some(source["type"].as_str().unwrap()), plugin.split_once('@').map(|(name, _)| name));
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"], expected, "{}", panel["title"]);
        assert_eq!(panel["targets"][0]["datasource"], expected, "{}", panel["title"]);
    }
}

#[test]
fn panels_do_not_overlap_and_their_ids_differ() {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/influencers.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{} is wider than the page", panel["title"]);
        for cell in (at("y")..at("y") + at("h")).flat_map(|y| (at("x")..at("x") + at("w")).map(move |x| (x, y))) {
            assert!(taken.insert(cell), "{} lies over another panel", panel["title"]);
        }
    }
}

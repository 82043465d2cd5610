//! Charts as SVG files.

use std::path::Path;

use plotters::prelude::*;

use crate::cli::Failure;

/// One line of a chart.
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Draws lines over two logarithmic axes into `folder/file`.
///
/// # Errors
/// There is no point above zero, or the file cannot be written.
pub fn draw(folder: &Path, file: &str, title: &str, axes: (&str, &str), lines: &[Line]) -> Result<(), Failure> {
    let points = || lines.iter().flat_map(|line| &line.points).filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let range = |values: Vec<f64>| {
        let (least, most) = values.iter().fold((f64::MAX, 0.0), |(l, m): (f64, f64), v| (l.min(*v), m.max(*v)));
        (least * 0.7)..(most * 1.5)
    };
    let (xs, ys): (Vec<f64>, Vec<f64>) = points().copied().unzip();
    if xs.is_empty() {
        return Err(format!("there is nothing to draw in {file}").into());
    }
    let path = folder.join(file);
    let failed = |error: String| format!("cannot draw {}: {error}", path.display());
    let area = SVGBackend::new(&path, (720, 420)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(error.to_string()))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(72)
        .build_cartesian_2d(range(xs).log_scale(), range(ys).log_scale())
        .map_err(|error| failed(error.to_string()))?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(axes.0).y_desc(axes.1).draw().map_err(|error| failed(error.to_string()))?;
    for (at, line) in lines.iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        let drawn = chart
            .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)).point_size(3))
            .map_err(|error| failed(error.to_string()))?;
        drawn.label(&line.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    let mut legend = chart.configure_series_labels();
    legend.background_style(WHITE).border_style(BLACK).draw().map_err(|error| failed(error.to_string()))?;
    area.present().map_err(|error| failed(error.to_string()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_title_and_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [Line { name: "time".into(), points: vec![(10.0, 1.0), (1e6, 3.0)] }];
        draw(folder.path(), "a.svg", "A title", ("keys", "seconds"), &lines).unwrap();
        let text = std::fs::read_to_string(folder.path().join("a.svg")).unwrap();
        assert!(text.contains("<svg") && text.contains("A title") && text.contains("polyline"), "{text}");
        assert!(draw(folder.path(), "b.svg", "B", ("x", "y"), &[]).is_err());
    }
}

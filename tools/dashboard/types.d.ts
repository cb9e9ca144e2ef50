// Types of the dashboard's modules. They are global, and stand here because the modules are served
// as they are: a browser need not load what only the type check reads.

type UPlot = typeof import("uplot");
type Plot = import("uplot");
type PlotOptions = import("uplot").Options;
type PlotAxis = import("uplot").Axis;
type PlotData = import("uplot").AlignedData;
type PlotScale = import("uplot").Scale;
type PlotSeries = import("uplot").Series;

interface Window {
	/** Defined by vendor/uPlot.iife.min.js. */
	uPlot: UPlot;
}

// Responses of the API: the fields that the pages read. docs/api.md describes all.

type Maybe<Value> = Value | null | undefined;
type FailureType = keyof typeof import("../../src/http/dashboard/format.js").TYPE_NAMES;
type QueryStatus = keyof typeof import("../../src/http/dashboard/format.js").STATUS_ACTIONS;

/** The response to a `GET` below `/v1/`, by its path. */
interface Responses {
	calibration: Calibration;
	failures: FailurePage;
	[failure: `failures/${string}`]: Failure;
	queries: TopQueries;
	stats: ServiceStats;
	strategies: { data: StrategySummary[] };
	summary: Summary;
	timeseries: Timeseries;
}

/** An error response (RFC 9457). */
interface Problem {
	title: string;
	detail: string;
	code: string;
}

/** A failure of the log. */
interface Failure {
	event_id: string;
	conversation_id: string | null;
	turn_index: number | null;
	failure_type: string;
	retrieval_strategy: string;
	query_text: string;
	query_len: number;
	top_score: number | null;
	confidence_threshold: number | null;
	result_count: number | null;
	latency_ms: number | null;
	edge_types: string | null;
	error_context: string | null;
	source: string | null;
	labels: Record<string, string>;
	created_at: string;
}

interface FailurePage {
	data: Failure[];
	next: string | null;
	older: string | null;
	newer: string | null;
	complete: boolean;
	searched_to: string | null;
}

interface Rates {
	attempts: number;
	successes: number;
	failures: number;
	unobserved: number;
	failure_rate: number | null;
	/** In the order of the summary's other rates. */
	types: { failure_type: string; failures: number }[];
	latency_ms: { p50: number; p95: number; p99: number } | null;
}

interface StrategySummary {
	retrieval_strategy: string;
	rates: Rates;
	previous: Rates;
}

interface Summary {
	range: { from: string; to: string };
	total: Rates;
	previous: Rates;
	strategies: StrategySummary[];
	rows_since: string | null;
	attempts_since: string | null;
	dropped: Record<string, number>;
	previous_dropped: Record<string, number>;
}

interface TimePoint extends Record<FailureType, number> {
	at: string;
	attempts: number;
	failures: number;
	failure_rate: number | null;
}

interface Timeseries {
	step_seconds: number;
	points: TimePoint[];
	strategies: StrategyPoints[];
}

interface StrategyPoints {
	retrieval_strategy: string;
	attempts: number[];
	failures: number[];
	/** Empty unless the request asks for latencies. */
	latency_p95_ms: (number | null)[];
}

/** A mark of time, such as a deployment. */
interface Annotation {
	id: string;
	at: string;
	text: string;
	version: string | null;
}

interface ServiceStats {
	persisted: number;
	buffered: number;
	failed_flushes: number;
	last_flush: string | null;
	/** The reason for which the service is not healthy. */
	unhealthy: string | null;
	dropped: Record<string, number>;
	database_bytes: number;
}

interface QueryGroup {
	id: string;
	example: string;
	count: number;
	texts: number;
	last_seen: string;
	first_seen: string;
	best_score: number | null;
	types: Record<FailureType, number>;
	strategies: { retrieval_strategy: string; failures: number }[];
	trend: number[];
	status: QueryStatus;
	reopened: boolean;
}

interface TopQueries {
	partial: boolean;
	in_progress: boolean;
	data: QueryGroup[];
	has_more: boolean;
	total: number;
	statuses: Record<QueryStatus | "reopened", number>;
	scanned: { range: { from: string }; failures: number; complete: boolean };
	ungrouped: number;
}

interface ScoreBucket {
	from: number;
	to: number;
	successes: number;
	failures: number;
}

interface Calibration {
	retrieval_strategy: string;
	confidence_threshold: number | null;
	score_direction: "higher_is_better" | "lower_is_better";
	attempts: number;
	failure_rate: number | null;
	distribution: ScoreBucket[];
	curve: { threshold: number; failure_rate: number }[];
	failure_rate_at_threshold: number | null;
	changes_at_threshold: { newly_failing: number; newly_passing: number } | null;
	threshold_for_failure_rate: number | null;
}

/** Parameters of a request; one that is null or undefined is left out. */
type Params = Record<string, Maybe<string | number>>;

/** A token that a person entered. */
interface GivenToken {
	token: string;
	/** Until the tab is closed. */
	isKept: boolean;
}

/** Listeners of a tail stream. */
interface TailListeners {
	failure(failure: Failure): void;
	/** Another log has the file name now. */
	replaced(): void;
	connected(isConnected: boolean): void;
}

// State: what the URL says.

type PageName = "overview" | "failures" | "queries" | "calibration";
type StateKey =
	| "since"
	| "from"
	| "to"
	| "whole"
	| "type"
	| "strategy"
	| "conversation"
	| "text"
	| "group"
	| "failure"
	| "live"
	| "cursor"
	| "back"
	| "status"
	| "sort"
	| "threshold";
type State = { page: PageName } & Partial<Record<StateKey, string>>;
/** Changes of the state; null removes a value. */
type StateChanges = { page?: PageName } & Partial<Record<StateKey, string | null>>;

/** A page that is shown. */
interface Page {
	load(signal: AbortSignal): Promise<void>;
	close(): void;
	/** `true` while the page must not be refreshed by the timer. */
	readonly isHeld?: boolean;
	/** Puts the focus into the search field. */
	search?(): void;
	/** Keys of this page, with what they do. */
	readonly keys?: Record<string, [text: string, act: () => void]>;
}

// Elements.

type Child = Node | string | number | null | undefined | false | Child[];
type Listener = (event: Event) => unknown;
interface Attributes {
	[listener: `on${string}`]: Listener;
	[attribute: string]: Listener | Maybe<string | number | boolean>;
}

/** A column of a table: its name, classes such as `number` or `wide`, and a hint. */
type Column = [name: string, classes?: string, title?: string];

interface Row {
	attributes: Attributes;
	cells: Child[];
}

/** A kind of failures that are related to another one. */
interface Related {
	caption: string;
	/** The range around the failure. */
	days: number;
	/** The first and the last column. */
	columns: [string, string];
	/** The cells of these columns. */
	cells(failure: Failure): [Child, Child];
	compare(one: Failure, other: Failure): number;
}

/** A chart on a page. */
interface ChartView {
	element: HTMLElement;
	draw(): void;
	close(): void;
}

interface ThresholdChart extends ChartView {
	/** Returns null if there is no threshold yet. */
	threshold(): number | null;
	set(threshold: number): void;
	focus(): void;
}

// Functions with many parameters, by module.

type Mount = (root: Element) => Page;

interface Api {
	send(
		path: string,
		params: Params,
		options?: RequestInit & { headers?: Record<string, string> },
	): Promise<Response>;
	get<Path extends keyof Responses>(
		path: Path,
		params: Params,
		signal?: AbortSignal,
	): Promise<Responses[Path]>;
	/** Calls `progress` with the milliseconds so far. */
	poll<Path extends keyof Responses>(
		path: Path,
		params: Params,
		signal: AbortSignal,
		progress: (ms: number) => void,
	): Promise<Responses[Path]>;
	download(path: string, params: Params, name: string): Promise<void>;
	/** Runs until `signal`, and misses no event. */
	tail(params: Params, signal: AbortSignal, listeners: TailListeners): Promise<void>;
}

interface Dom {
	/**
	 * Attributes may be left out. An attribute is one of HTML, a listener (`on…`), or a property
	 * without an attribute.
	 */
	h<Tag extends keyof HTMLElementTagNameMap>(
		tag: Tag,
		first?: Attributes | Child,
		...children: Child[]
	): HTMLElementTagNameMap[Tag];
	svg(
		tag: keyof SVGElementTagNameMap,
		attributes: Record<string, string | number>,
		...children: Node[]
	): SVGElement;
	table(
		caption: string,
		columns: Column[],
		rows: (Row | Child[])[],
		attributes?: Attributes,
	): HTMLElement;
	/** `options` are values with their texts. */
	select(
		name: string,
		label: string,
		options: string[][],
		value: string,
		onchange: (value: string) => void,
	): HTMLElement;
	anchor(changes: StateChanges, content: Child, attributes?: Attributes): HTMLElement;
}

interface Format {
	/** The first label of a day has the date. */
	ticks(seconds: number[], step: number): string[];
	logged(text: string, attributes?: Attributes): HTMLElement;
	interval(part: number, all: number): [low: number, high: number];
}

/** Values of a chart over time. `low` follows its `high`: the space between them is filled. */
interface ChartSeries {
	kind: "bars" | "line" | "high" | "low";
	/** A colour of style.css. */
	color: string;
	dash?: number[];
	values: (number | null)[];
}

/** A chart over time, in equal steps. */
interface TimeChart {
	label: string;
	height: number;
	/** The width of the axis of values; by default that of its labels. */
	width?: number;
	/** `false`: a chart below has the labels of the times. */
	hasTimes?: boolean;
	/** The seconds at which the steps begin. */
	starts: number[];
	step: number;
	/** The last step is not over, and is hatched. */
	isOpen: boolean;
	series: ChartSeries[];
	axisText(value: number): string;
	/** Returns the upper end of the axis. */
	top(highest: number): number;
	/** Returns the content of the tooltip of a step. */
	tip(index: number): Child[];
	/** Called with the range over which a person dragged. */
	zoom?(from: number, to: number): void;
}

interface TimeChartView extends ChartView {
	chart: import("../../src/http/dashboard/plot.js").Chart;
	linkTo(others: TimeChartView[]): void;
}

interface Plots {
	overTime(chart: TimeChart): TimeChartView;
	selectRange(
		plot: Plot,
		/** Returns the left edge of a step and the right edge of another. */
		edges: (plot: Plot, from: number, to: number) => number[],
		chosen: (from: number, to: number) => void,
	): void;
}

interface StrategyLine {
	name: string;
	rank: number;
	attempts: number[];
	failures: number[];
	hasRate: boolean;
	latencies: (number | null)[];
}

interface StrategyChart {
	title: string;
	values(strategy: StrategyLine): (number | null)[];
	text(value: number): string;
	axisText(value: number): string;
	top(highest: number): number;
}

type Zoom = (from: number, to: number) => void;

interface TimeCharts {
	/** The failure rate, above the failures, which are stacked by type. */
	failuresOverTime(series: Timeseries, zoom: Zoom): ChartView;
	/** `ranked` are the strategies, the most important first. */
	strategiesOverTime(series: Timeseries, ranked: StrategySummary[], zoom: Zoom): ChartView;
}

interface ScoreCharts {
	/**
	 * The scores of successes beside those of failures, and the failure rate of each threshold. Calls
	 * `moved` with the threshold to which a person dragged.
	 */
	scores(
		calibration: Calibration,
		threshold: number | null,
		moved: (threshold: number) => void,
	): ThresholdChart;
}

/** The rates that the overview shows, and those of the period before. */
interface ChosenRates {
	rates: Rates;
	before: Rates;
	strategies: StrategySummary[];
}

/** The name of the period before, or the reason for which there is no comparison. */
type Comparison = { period: string; reason: null } | { period: null; reason: string };

interface OverviewPage {
	chooseRates(summary: Summary, strategy: string | undefined): ChosenRates;
	comparison(summary: Summary, chosen: ChosenRates, period: string): Comparison;
	heroContent(
		summary: Summary,
		chosen: ChosenRates,
		compared: Comparison,
		series: Timeseries,
		trend: Element,
	): Child[];
	heroChange(rates: Rates, before: Rates, period: string): Child;
	strategyTable(strategies: StrategySummary[], compared: Comparison): Element;
}

interface QueriesPage {
	mountInbox(root: Element): Page & { element: HTMLElement; search(): void };
}

/** Failures of a group. `isWhole`: there are no others. */
interface FoundFailures {
	failures: Failure[];
	isWhole: boolean;
}

interface GroupPage {
	failuresOf(id: string, filter: Params, signal: AbortSignal): Promise<FoundFailures>;
	content(group: QueryGroup | undefined, ranking: TopQueries, found: FoundFailures): Child;
	trend(group: QueryGroup, ranking: TopQueries): Element;
	scores(failures: Failure[], sample: string): Child;
}

interface FailuresPage {
	find(
		now: State,
		signal: AbortSignal,
		places: { list: Element; progress: Element; pager: Element },
	): Promise<void>;
	followTail(now: State, list: Element, progress: Element): { stop(): void };
}

interface DetailView {
	mount(
		root: Element,
		events: () => string[],
	): {
		show(event: string | undefined, signal: AbortSignal): Promise<void>;
		/** Call this when the list has changed. */
		update(): void;
		close(): void;
	};
	/** Shows up to 50 related failures, from the time around a failure. */
	showRelated(
		place: Element,
		failure: Failure,
		kind: Related,
		filter: Params,
		signal: AbortSignal,
	): Promise<void>;
}

interface CalibrationPage {
	/** Returns the fields of a threshold, and of a failure rate whose threshold is searched for. */
	inputs(calibration: Calibration, chart: ThresholdChart, signal: AbortSignal): Child;
	effect(read: Calibration, threshold: number): Element;
	changes(read: Calibration, threshold: number, signal: AbortSignal): Child;
	passingFailures(read: Calibration, threshold: number, signal: AbortSignal): Promise<Failure[]>;
	settings(read: Calibration, threshold: number): Element;
	/** Shows the failure rate of a threshold. */
	showRate(calibration: Calibration, threshold: number, signal: AbortSignal): Promise<void>;
}

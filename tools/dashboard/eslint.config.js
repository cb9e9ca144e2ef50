import js from "@eslint/js";
import globals from "globals";

/** Ways to turn text into markup: logged text is hostile. */
const MARKUP = [
	"innerHTML",
	"outerHTML",
	"insertAdjacentHTML",
	"setHTMLUnsafe",
	"write",
	"writeln",
];

/** Functions of format.js that return an element. */
const ELEMENTS = ["ago", "badge", "change", "large", "logged", "sparkline", "time"];

export default [
	{ ignores: ["src/http/dashboard/vendor/"] },
	js.configs.recommended,
	{
		linterOptions: { reportUnusedDisableDirectives: "error" },
		rules: {
			eqeqeq: ["error", "always", { null: "ignore" }],
			"no-shadow": "error",
			"no-var": "error",
			"object-shorthand": "error",
			"prefer-const": "error",
			"no-eval": "error",
			"no-new-func": "error",
			"no-restricted-syntax": [
				"error",
				{
					selector: `TemplateLiteral > CallExpression:matches([callee.name='h'], [callee.property.name=/^(${ELEMENTS.join("|")})$/])`,
					message: "A template string prints an element as [object …]: pass it as a child.",
				},
			],
			"no-restricted-properties": [
				"error",
				...MARKUP.map(property => ({ property, message: "Make elements with h() of dom.js." })),
			],
		},
	},
	{
		files: ["src/http/dashboard/*.js"],
		languageOptions: { globals: globals.browser },
		rules: {
			// The characters that `visible` shows by their numbers.
			"no-control-regex": "off",
		},
	},
];

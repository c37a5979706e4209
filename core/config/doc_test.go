package config

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// The page of the manual names each setting, on both faces. R-312.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/spec/config.md")
	if err != nil {
		t.Fatal(err)
	}
	fields := reflect.TypeFor[Config]()
	for i := range fields.NumField() {
		variable := fields.Field(i).Tag.Get("env")
		name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		if row := "| `" + variable + "` | `" + name + "` |"; !strings.Contains(string(page), row) {
			t.Errorf("docs/spec/config.md lacks the row %s", row)
		}
	}
	for _, variable := range clientVariables {
		if !strings.Contains(string(page), "`"+variable+"`") {
			t.Errorf("docs/spec/config.md lacks %s", variable)
		}
	}
}

package secret_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/rustyonions/ron-kms/core/secret"
)

// cavp are cases of NIST's HMAC_DRBG vectors for SHA-256 without prediction
// resistance (CAVS 14.3, drbgvectors_no_reseed and drbgvectors_pr_false), the
// first of each group. All are: instantiate, reseed if there is input for it,
// generate twice, and the second output is the answer.
var cavp = []struct {
	name              string
	entropy, nonce    string
	label             string // personalization string
	reseed, reseedAdd string
	add               [2]string
	want              string
}{
	{
		name:    "no reseed, additional input",
		entropy: "d3cc4d1acf3dde0c4bd2290d262337042dc632948223d3a2eaab87da44295fbd",
		nonce:   "0109b0e729f457328aa18569a9224921",
		add: [2]string{
			"3c311848183c9a212a26f27f8c6647e40375e466a0857cc39c4e47575d53f1f6",
			"fcb9abd19ccfbccef88c9c39bfb3dd7b1c12266c9808992e305bc3cff566e4e4",
		},
		want: "9c7b758b212cd0fcecd5daa489821712e3cdea4467b560ef5ddc24ab47749a1f" +
			"1ffdbbb118f4e62fcfca3371b8fbfc5b0646b83e06bfbbab5fac30ea09ea2bc7" +
			"6f1ea568c9be0444b2cc90517b20ca825f2d0eccd88e7175538b85d90ab39018" +
			"3ca6395535d34473af6b5a5b88f5a59ee7561573337ea819da0dcc3573a22974",
	},
	{
		name:    "no reseed, additional input, label",
		entropy: "5d3286bc53a258a53ba781e2c4dcd79a790e43bbe0e89fb3eed39086be34174b",
		nonce:   "c5422294b7318952ace7055ab7570abf",
		label:   "2dba094d008e150d51c4135bb2f03dcde9cbf3468a12908a1b025c120c985b9d",
		add: [2]string{
			"793a7ef8f6f0482beac542bb785c10f8b7b406a4de92667ab168ecc2cf7573c6",
			"2238cdb4e23d629fe0c2a83dd8d5144ce1a6229ef41dabe2a99ff722e510b530",
		},
		want: "d04678198ae7e1aeb435b45291458ffde0891560748b43330eaf866b5a6385e7" +
			"4c6fa5a5a44bdb284d436e98d244018d6acedcdfa2e9f499d8089e4db86ae89a" +
			"6ab2d19cb705e2f048f97fb597f04106a1fa6a1416ad3d859118e079a0c319eb" +
			"95686f4cbcce3b5101c7a0b010ef029c4ef6d06cdfac97efb9773891688c37cf",
	},
	{
		name:      "reseed, additional input",
		entropy:   "05ac9fc4c62a02e3f90840da5616218c6de5743d66b8e0fbf833759c5928b53d",
		nonce:     "2b89a17904922ed8f017a63044848545",
		reseed:    "2791126b8b52ee1fd9392a0a13e0083bed4186dc649b739607ac70ec8dcecf9b",
		reseedAdd: "43bac13bae715092cf7eb280a2e10a962faf7233c41412f69bc74a35a584e54c",
		add: [2]string{
			"3f2fed4b68d506ecefa21f3f5bb907beb0f17dbc30f6ffbba5e5861408c53a1e",
			"529030df50f410985fde068df82b935ec23d839cb4b269414c0ede6cffea5b68",
		},
		want: "02ddff5173da2fcffa10215b030d660d61179e61ecc22609b1151a75f1cbcbb4" +
			"363c3a89299b4b63aca5e581e73c860491010aa35de3337cc6c09ebec8c91a62" +
			"87586f3a74d9694b462d2720ea2e11bbd02af33adefb4a16e6b370fa0effd57d" +
			"607547bdcfbb7831f54de7073ad2a7da987a0016a82fa958779a168674b56524",
	},
	{
		name:      "reseed, additional input, label",
		entropy:   "cdb0d9117cc6dbc9ef9dcb06a97579841d72dc18b2d46a1cb61e314012bdf416",
		nonce:     "d0c0d01d156016d0eb6b7e9c7c3c8da8",
		label:     "6f0fb9eab3f9ea7ab0a719bfa879bf0aaed683307fda0c6d73ce018b6e34faaa",
		reseed:    "8ec6f7d5a8e2e88f43986f70b86e050d07c84b931bcf18e601c5a3eee3064c82",
		reseedAdd: "1ab4ca9014fa98a55938316de8ba5a68c629b0741bdd058c4d70c91cda5099b3",
		add: [2]string{
			"16e2d0721b58d839a122852abd3bf2c942a31c84d82fca74211871880d7162ff",
			"53686f042a7b087d5d2eca0d2a96de131f275ed7151189f7ca52deaa78b79fb2",
		},
		want: "dda04a2ca7b8147af1548f5d086591ca4fd951a345ce52b3cd49d47e84aa31a1" +
			"83e31fbc42a1ff1d95afec7143c8008c97bc2a9c091df0a763848391f68cb4a3" +
			"66ad89857ac725a53b303ddea767be8dc5f605b1b95f6d24c9f06be65a973a08" +
			"9320b3cc42569dcfd4b92b62a993785b0301b3fc452445656fce22664827b88f",
	},
	{
		name:    "no reseed",
		entropy: "ca851911349384bffe89de1cbdc46e6831e44d34a4fb935ee285dd14b71a7488",
		nonce:   "659ba96c601dc69fc902940805ec0ca8",
		want: "e528e9abf2dece54d47c7e75e5fe302149f817ea9fb4bee6f4199697d04d5b89" +
			"d54fbb978a15b5c443c9ec21036d2460b6f73ebad0dc2aba6e624abf07745bc1" +
			"07694bb7547bb0995f70de25d6b29e2d3011bb19d27676c07162c8b5ccde0668" +
			"961df86803482cb37ed6d5c0bb8d50cf1f50d476aa0458bdaba806f48be9dcb8",
	},
	{
		name:    "reseed, label",
		entropy: "fa0ee1fe39c7c390aa94159d0de97564342b591777f3e5f6a4ba2aea342ec840",
		nonce:   "dd0820655cb2ffdb0da9e9310a67c9e5",
		label:   "f2e58fe60a3afc59dad37595415ffd318ccf69d67780f6fa0797dc9aa43e144c",
		reseed:  "e0629b6d7975ddfa96a399648740e60f1f9557dc58b3d7415f9ba9d4dbb501f6",
		want: "f92d4cf99a535b20222a52a68db04c5af6f5ffc7b66a473a37a256bd8d298f9b" +
			"4aa4af7e8d181e02367903f93bdb744c6c2f3f3472626b40ce9bd6a70e7b8f93" +
			"992a16a76fab6b5f162568e08ee6c3e804aefd952ddd3acb791c50f2ad69e9a0" +
			"4028a06a9c01d3a62aca2aaf6efe69ed97a016213a2dd642b4886764072d9cbe",
	}}

// R-090, D-21: the generator of an arena gives NIST's answers, with the vectors'
// inputs arriving as what it reads from its entropy source. The cases without
// additional input, which an arena always has, go past its draw.
func TestHMACDRBGVectors(t *testing.T) {
	t.Parallel()
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	kinds := map[[2]bool]int{} // reseeded, additional input
	for _, c := range cavp {
		t.Run(c.name, func(t *testing.T) {
			var source bytes.Buffer
			for _, s := range []string{c.entropy, c.nonce, c.reseed, c.reseedAdd, c.add[0], c.add[1]} {
				source.Write(unhex(s))
			}
			g, err := secret.NewGenerator(&source, 0, unhex(c.label))
			if err != nil {
				t.Fatal(err)
			}
			want := unhex(c.want)
			got := make([]byte, len(want))
			hasAdd := c.add[0] != ""
			kinds[[2]bool{c.reseed != "", hasAdd}]++
			if hasAdd {
				if c.reseed != "" {
					if err := g.Reseed(); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					if err := g.Fill(got); err != nil {
						t.Fatal(err)
					}
				}
				if source.Len() != 0 {
					t.Errorf("%d bytes of the source were not read", source.Len())
				}
			} else {
				if err := g.Bare(unhex(c.reseed), got, got); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
	if len(kinds) != 4 || len(cavp) < 4 {
		t.Errorf("cases by kind: %v, want all four", kinds)
	}
}
